"""A tiny model answers a tiny task: records, sharding, files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Int64
from torch import Tensor

from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import DataError, ModelContractError
from dllm_rl.evaluation.measure import evaluate_model
from dllm_rl.evaluation.metrics import Record
from dllm_rl.evaluation.run import run_task, score_file
from dllm_rl.evaluation.store import write_records
from dllm_rl.models import DiffusionModel
from dllm_rl.rng import sample_keys
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.text import decode_until_eos, encode_prompt
from dllm_rl.scoring.result import Score

SETTINGS = RolloutSettings(sampler="llada", gen_length=6, temperature=0.7)


class Sums:
    """Sums to continue; the score says how much of the completion is digits, so that it tells completions apart."""

    name, version = "sums", 1

    def __init__(self, count: int = 7) -> None:
        self.count = count

    def examples(self) -> Sequence[Mapping[str, Any]]:
        return [{"question": f"{i}+{i}="} for i in range(self.count)]

    def prompt(self, example: Mapping[str, Any]) -> str:
        return str(example["question"])

    def score(self, example: Mapping[str, Any], completion: str) -> Score:
        return Score(sum(map(ord, completion)) % 101 / 100, completion, "a checksum")


class Calls:
    """An engine that counts."""

    def __init__(self, model: DiffusionModel) -> None:
        self.inner = LocalEngine(model, SETTINGS)
        self.sizes: list[int] = []
        self.returns_trajectory = self.exact_logp = True

    def generate(self, prompts: Sequence[Sequence[int]], keys: Int64[Tensor, " B"], update: int = 0) -> Trajectory:
        self.sizes.append(len(prompts))
        return self.inner.generate(prompts, keys, update)


def test_records_are_what_the_engine_wrote(tiny: DiffusionModel) -> None:
    engine, task = LocalEngine(tiny, SETTINGS), Sums()
    result = run_task(engine, tiny, task, seed=3)
    prompts = [encode_prompt(tiny.tokenizer, task.prompt(example)) for example in task.examples()]
    written = engine.generate(prompts, sample_keys(3, torch.arange(7)))
    decode = decode_until_eos(tiny)
    assert [record.completion for record in result.records] == [decode(ids) for ids in written.completions]
    assert [record.index for record in result.records] == list(range(7))
    assert [record.prompt for record in result.records] == [f"{i}+{i}=" for i in range(7)]
    assert result.scores == [task.score({}, record.completion).value for record in result.records]
    assert result.nfe == 6 and result.tokens_per_forward == 1
    ends = [next((i for i, t in enumerate(ids) if t in tiny.spec.eos_ids), 6) for ids in written.completions]
    assert [record.length for record in result.records] == ends
    assert result.length == sum(ends) / 7


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_change_nothing(tiny: DiffusionModel, batch_size: int) -> None:
    engine = Calls(tiny)
    assert run_task(engine, tiny, Sums(), batch_size=batch_size) == run_task(LocalEngine(tiny, SETTINGS), tiny, Sums())
    assert engine.sizes == {1: [1] * 7, 3: [3, 3, 1], 64: [7]}[batch_size]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_the_work_and_agree(tiny: DiffusionModel, world: int) -> None:
    whole = run_task(LocalEngine(tiny, SETTINGS), tiny, Sums())
    gathered: list[Record] = []
    sizes = []
    for rank in range(world):  # one after the other: the last one to gather has everything
        engine = Calls(tiny)

        def gather(records: list[Record]) -> list[Record]:
            gathered.extend(records)
            return list(whole.records)

        run_task(engine, tiny, Sums(), batch_size=2, rank=rank, world=world, gather=gather)
        sizes.append(engine.sizes)
    assert all(each == sizes[0] for each in sizes)  # as many collective calls on each
    assert {record.index: record for record in gathered} == {record.index: record for record in whole.records}


def test_a_lost_record_is_an_error(tiny: DiffusionModel) -> None:
    with pytest.raises(DataError, match="no record of example 1"):
        run_task(LocalEngine(tiny, SETTINGS), tiny, Sums(4), rank=0, world=2)


def test_limit_takes_the_first_and_none_is_refused(tiny: DiffusionModel) -> None:
    whole = run_task(LocalEngine(tiny, SETTINGS), tiny, Sums())
    assert run_task(LocalEngine(tiny, SETTINGS), tiny, Sums(), limit=3).scores == whole.scores[:3]
    for limit in (0, -1):  # -1 would leave out the last one
        with pytest.raises(DataError, match=f"limit is {limit}"):
            run_task(LocalEngine(tiny, SETTINGS), tiny, Sums(), limit=limit)


def test_text_needs_a_tokenizer(tiny: DiffusionModel) -> None:
    engine = LocalEngine(tiny, SETTINGS)
    tiny.tokenizer = None
    with pytest.raises(ModelContractError, match="no tokenizer files"):
        run_task(engine, tiny, Sums())


def test_records_on_disk_are_the_records(tiny: DiffusionModel, tmp_path: Path) -> None:
    out = tmp_path / "deep/sums.jsonl"
    whole = run_task(LocalEngine(tiny, SETTINGS), tiny, Sums())
    write_records(out, whole.records)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [Record(**line) for line in lines] == list(whole.records)


def test_decoding_stops_at_the_first_end(tiny: DiffusionModel) -> None:
    tokenizer, eos = tiny.tokenizer, tiny.spec.eos_ids[0]
    assert tokenizer is not None
    ids = tokenizer("42", add_special_tokens=False)["input_ids"]
    assert decode_until_eos(tiny)([*ids, eos, *ids]) == "42"
    assert decode_until_eos(tiny)([eos, *ids]) == ""
    assert decode_until_eos(tiny)(ids) == "42"


def test_chat_prompts(tiny: DiffusionModel) -> None:
    tokenizer = tiny.tokenizer
    assert tokenizer is not None
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="}]
    turns = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}>{% endif %}"
    assert tokenizer.decode(encode_prompt(tokenizer, messages)) == "[system]Add.[user]1+1=>"
    begun = [*messages, {"role": "assistant", "content": "It "}]  # an answer that has a beginning already
    assert tokenizer.decode(encode_prompt(tokenizer, begun)) == "[system]Add.[user]1+1=>It "
    tokenizer.chat_template = None
    assert tokenizer.decode(encode_prompt(tokenizer, messages)) == "Add.\n\n1+1="
    assert tokenizer.decode(encode_prompt(tokenizer, "1+1=")) == "1+1="


def test_a_saved_model_answers_and_its_file_scores_the_same(tiny: DiffusionModel, tmp_path: Path) -> None:
    tiny.save(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{i}+1?", "answer": f"#### {i + 1}"}) + "\n" for i in range(3)))
    results = evaluate_model(str(tmp_path / "model"), ["gsm8k"], SETTINGS, data=str(rows))
    write_records(tmp_path / "gsm8k.jsonl", results["gsm8k"].records)
    again = score_file("gsm8k", tmp_path / "gsm8k.jsonl", str(rows))
    assert results["gsm8k"].n == 3
    assert [replace(record, nfe=None, tokens=None, length=None) for record in results["gsm8k"].records] == list(
        again.records
    )
    with pytest.raises(DataError, match="given for 2 tasks"):
        evaluate_model(str(tmp_path / "model"), ["gsm8k", "math500"], SETTINGS, data=str(rows))


def test_scoring_a_file(tmp_path: Path) -> None:
    rows, file = tmp_path / "rows.jsonl", tmp_path / "written.jsonl"
    rows.write_text('{"question": "?", "answer": "#### 1"}\n{"question": "?", "answer": "#### 2"}\n')
    file.write_text('{"index": 1, "completion": "<answer>2</answer>"}\n\n{"index": 0, "completion": "1"}\n')
    with pytest.raises(DataError, match="none.jsonl"):
        score_file("gsm8k", tmp_path / "none.jsonl", "/no/rows.jsonl")
    result = score_file("gsm8k", file, str(rows))
    assert result.scores == [1.0, 0.0]
    assert [record.index for record in result.records] == [1, 0]
    file.write_text('{"index": 1, "completion": "<answer>2</answer>"}\n{"index": 1, "completion": "1"}\n')
    result = score_file("gsm8k", file, str(rows))
    assert (result.scores, result.samples) == ([0.5], 2)
    assert [record.sample for record in result.records] == [0, 1]
    assert [result.pass_at(k).accuracy for k in (1, 2)] == [0.5, 1]
    file.write_text('{"index": 0, "sample": 1, "completion": ""}\n' * 2)
    with pytest.raises(DataError, match="example 0 has two samples 1"):
        score_file("gsm8k", file, str(rows))
    for line in (
        '{"index": 2, "completion": ""}',
        '{"index": 0}',
        '{"completion": ""}',
        '{"index": -1, "completion": ""}',
    ):
        file.write_text(line + "\n")
        with pytest.raises(DataError, match=r"line 1: expected completion .text. and index .0 to 1."):
            score_file("gsm8k", file, str(rows))
