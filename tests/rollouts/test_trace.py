"""What a trace says comes back as it was, and nothing is read that cannot have happened."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dllm_rl.diffusion.trajectory import Events, Op, Trajectory
from dllm_rl.errors import DataError
from dllm_rl.rollouts.trace_file import read_trace, write_trace
from dllm_rl.samplers.generate import generate
from tests.rollouts.traces import MASK, TEXTS, rollout, trace

Content = dict[str, Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_trace(tmp_path / "new/trace.json", trace(rollout()))
    return tmp_path / "new/trace.json"


def assert_same(one: Trajectory, other: Trajectory) -> None:
    for part in fields(Events):
        left, right = getattr(one.events, part.name), getattr(other.events, part.name)
        assert left.dtype == right.dtype
        assert torch.equal(left.nan_to_num(7.5, 1e9, -1e9), right.nan_to_num(7.5, 1e9, -1e9)), part.name
    for part in fields(Trajectory):
        left, right = getattr(one, part.name), getattr(other, part.name)
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype and torch.equal(left.isnan(), right.isnan())
            assert torch.equal(left.nan_to_num(), right.nan_to_num()), part.name
        elif part.name != "events":
            assert left == right, part.name


@pytest.mark.parametrize("seed", range(5))
def test_a_rollout_comes_back_bit_for_bit(tmp_path: Path, seed: int) -> None:
    made = rollout(rows=4, seed=seed)
    assert {int(op) for op in made.events.op} == set(Op)
    whole = trace(made)
    write_trace(tmp_path / "trace.json", whole)
    back = read_trace(tmp_path / "trace.json")
    assert_same(made, back.trajectory())
    assert json.loads((tmp_path / "trace.json").read_text(encoding="utf-8")) == whole.model_dump() == back.model_dump()


def test_so_does_one_of_a_model(tiny, tmp_path: Path) -> None:
    texts = {token: str(token) for token in range(tiny.spec.mask_id + 1)}
    for temperature in (0.0, 1.0):
        made = generate(tiny, [[1, 2], []], gen_length=12, steps=4, block_length=6, temperature=temperature)
        whole = trace(made, texts=texts)
        write_trace(tmp_path / "trace.json", whole)
        assert_same(made, read_trace(tmp_path / "trace.json").trajectory())
        assert made.behaviour_logp.isnan().all() == (temperature == 0)


def test_a_rollout_without_entropies_and_blocks_comes_back_without(tmp_path: Path) -> None:
    made = replace(rollout(), entropy=None, block_of=None, planner_temperature=None)
    write_trace(tmp_path / "trace.json", trace(made))
    assert_same(made, read_trace(tmp_path / "trace.json").trajectory())


def test_the_header_says_what_made_it(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    made = rollout()
    assert content["model"] == "some/model" and content["seed"] == 3 and content["exactness"] == "exact"
    assert content["sampler"]["name"] == "llada" and content["sampler"]["options"] == {"remasking": "random"}
    assert (content["prompt_length"], content["gen_length"], len(content["rows"])) == (3, 12, 3)
    for row, facts in enumerate(content["rows"]):
        assert facts["prompt"] == [10] * (row + 1) and facts["nfe"] == made.nfe[row] and facts["blocks"] == [4, 4, 4]
        assert facts["behaviour_logp"] == pytest.approx(float(made.behaviour_logp[row]))
    assert content["texts"] == {str(token): TEXTS[token] for token in sorted({10, *made.events.token.tolist()})}


def test_it_is_strict_json(file: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    content = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    made = rollout().events
    for index in range(len(made.row)):
        logp, conf = float(made.logp[index]), float(made.conf[index])
        assert content["events"]["logp"][index] == (None if math.isnan(logp) else logp)
        if math.isinf(conf):
            assert content["events"]["conf"][index] == ("Infinity" if conf > 0 else "-Infinity")


def first(content: Content, op: Op) -> int:
    return int(content["events"]["op"].index(op))


def put(column: str, index: int, value: object) -> Callable[[Content], object]:
    return lambda content: content["events"][column].__setitem__(index, value)


SPOILT: list[tuple[Callable[[Content], object], str]] = [
    (lambda c: c.update(format="x"), 'not a trace; expected an object with "format"'),
    (lambda c: c.update(version=3), "a trace of version 3; this release reads versions 1 and 2"),
    (lambda c: c.update(version=True), "a trace of version True; this release reads versions 1 and 2"),
    (lambda c: c.update(version=1), "schedule is not a field of a trace of version 1"),
    (lambda c: c.pop("seed"), "seed is missing"),
    (lambda c: c.update(sead=1), "sead is not a field of a trace"),
    (lambda c: c["rows"][1].pop("nfe"), "rows[1].nfe is missing"),
    (lambda c: c["sampler"].update(steps="4"), "sampler.steps is '4'"),
    (lambda c: c.update(exactness="perfect"), "exactness is 'perfect'"),
    (put("op", 3, 4), "events.op[3] is 4"),
    (put("step", 3, -1), "events.step[3] is -1"),
    (put("token", 3, 1.5), "events.token[3] is 1.5"),
    (put("token", 3, True), "events.token[3] is True"),
    (put("logp", 3, "NaN"), "events.logp[3] is 'NaN': expected a number, null"),
    (put("logp", 3, True), "events.logp[3] is True"),
    (lambda c: c["events"]["conf"].pop(), "columns of events differ in length: row"),
    (lambda c: c["texts"].pop("10"), "texts has no entry for token 10 of a prompt"),
    (lambda c: c.update(rows=[]), "rows is empty"),
    (lambda c: c.update(prompt_length=2), "prompt_length is 2; the longest prompt has 3 tokens"),
    (lambda c: c.update(gen_length=13), "gen_length is 13 and sampler.gen_length 12"),
    (lambda c: c["rows"][1]["selection_logp"].pop(), "rows[1] has"),
    (lambda c: c["rows"][0].update(nfe=99), "rows[0] has 99 forwards"),
    (lambda c: c["rows"][1].update(entropy=None), "rows[1].entropy does not have"),
    (lambda c: c["rows"][2]["entropy"].pop(), "rows[2].entropy does not have"),
    (lambda c: c["rows"][0].update(key="1.5"), "rows[0].key is '1.5'"),
    (lambda c: c["rows"][0].update(key="9" * 5000), "rows[0].key is '9999"),
    (lambda c: c["rows"][0].update(key=str(2**63)), "rows[0].key is '9223372036854775808'"),
    (lambda c: c["rows"][0].update(blocks=[4, 4]), "rows[0].blocks make 8 positions; gen_length is 12"),
    (put("row", -1, 3), "there are 3 rows"),
    (put("position", 1, 12), "position 12): gen_length is 12"),
    (put("step", 1, 0), "event 1 (WRITE, row 0, step 0, position"),
    (put("step", -1, 10**6), "the first of which is step 1"),
    (lambda c: [put("row", -1, 0)(c), put("step", -1, 1)(c)], "events are sorted by row, then step"),
    (lambda c: put("position", 2, c["events"]["position"][1])(c), "the position is written already"),
    (put("op", 1, int(Op.EDIT)), "event 1 (EDIT, row 0, step"),
    (lambda c: put("token", first(c, Op.REMASK), 1)(c), f"holds token 1; expected the mask id, {MASK}"),
    (lambda c: c["rows"][0].update(behaviour_logp=-1.0), "rows[0].behaviour_logp is -1.0; the events, selections and"),
    (lambda c: c["rows"][0].update(behaviour_logp=None), "rows[0].behaviour_logp is nan; the events, selections and"),
]


@pytest.mark.parametrize(("change", "message"), SPOILT, ids=[message for _, message in SPOILT])
def test_a_spoilt_trace_is_refused(file: Path, change: Callable[[Content], object], message: str) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError) as refused:
        read_trace(file)
    assert str(refused.value).startswith(f"{file}: ") and message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not strict JSON"),
        ('{"format": ', "not strict JSON"),
        ('{"format": "dllm-rl trace", "seed": NaN}', "found NaN, which is no JSON number"),
        ("[]", "not a trace"),
        ('"dllm-rl trace"', "not a trace"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "trace.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_trace(tmp_path / "trace.json")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no trace .*none.json; `dllm-rl generate"):
        read_trace(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_trace(tmp_path)
    (tmp_path / "latin.json").write_bytes(b"\xe9")
    with pytest.raises(DataError, match="as UTF-8 text"):
        read_trace(tmp_path / "latin.json")
