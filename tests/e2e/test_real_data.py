"""The published recipes on real rows: a tiny checkpoint in the official format stands in for the 8 billion weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from dllm_rl.toys.bytes import byte_tokenizer
from dllm_rl.toys.model import tiny_llada
from tests.e2e import runs

pytestmark = pytest.mark.slow
SMALL = [
    "model.dtype=float32",
    "train.bf16=false",
    "data.overlong=drop",
    "eval.limit=4",
    "eval.gen_length=16",
    "eval.every=2",
    "train.save_steps=2",
    "train.gradient_accumulation_steps=2",
    "train.per_device_train_batch_size=1",
]
EVEN_STEPS = ["eval.steps=8", "eval.block_length=8"]
ROLLOUTS = {"diffu_grpo": [*EVEN_STEPS, "rollout.steps=8", "rollout.block_length=16"], "cj_grpo": []}


def _checkpoint(folder: Path) -> str:
    tiny_llada(seed=0, max_positions=1024, tokenizer=byte_tokenizer()).save(folder / "llada")
    return f"model.path={folder / 'llada'}"


def _resumes(output: Path, recipe: str, overrides: list[str], update: int) -> None:
    """Launched again for longer, the run goes on from where it was."""
    before = runs.weights(output)
    again = runs.launch(runs.ROOT / recipe, *overrides, f"train.max_steps={update}")
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"resuming {output}" in again.stderr
    assert max(line["update"] for line in runs.metrics(output)) == update
    assert (output / f"checkpoint-{update}").is_dir()
    assert not all(torch.equal(before[name], after) for name, after in runs.weights(output).items())


@pytest.mark.parametrize("recipe", ROLLOUTS)
def test_rollouts_on_gsm8k(recipe: str, tmp_path: Path, shared: Path) -> None:
    output = tmp_path / "run"
    (tmp_path / "digits.py").write_text(runs.REWARD)
    overrides = [
        _checkpoint(tmp_path),
        *SMALL,
        f"data.path={shared / 'data/gsm8k/train.jsonl'}",
        "data.limit=40",
        f"reward=[rewards/gsm8k.py:correctness, {tmp_path / 'digits.py'}:digits]",
        "rollout.gen_length=32",
        *ROLLOUTS[recipe],
        "algorithm.updates_per_rollout=2",
        "train.learning_rate=1e-3",
        f"eval.path={shared / 'data/gsm8k/test.jsonl'}",
        f"output={output}",
    ]
    done = runs.launch(runs.ROOT / f"recipes/{recipe}.yaml", *overrides, "train.max_steps=4")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = runs.metrics(output)
    assert {line["update"] for line in lines if "reward/mean" in line} == {1, 3}
    assert {line["update"] for line in lines if "eval/gsm8k/accuracy" in line} == {0, 2, 4}
    assert all("reward/gsm8k.correctness" in line for line in lines if "reward/mean" in line)
    assert (output / "final" / "adapter_config.json").is_file()
    _resumes(output, f"recipes/{recipe}.yaml", overrides, 6)


def test_vrpo_on_pairs_made_from_gsm8k(tmp_path: Path, shared: Path) -> None:
    """Chosen: the solution. Rejected: the same with every number of its answer changed."""
    output, pairs = tmp_path / "run", tmp_path / "pairs.jsonl"
    rows = [json.loads(line) for line in (shared / "data/gsm8k/train.jsonl").read_text().split("\n")[:40]]
    corrupt = lambda text: re.sub(r"\d+", lambda number: str(int(number[0]) + 7), text)  # noqa: E731
    pairs.write_text(
        "\n".join(
            json.dumps({"prompt": row["question"], "chosen": row["answer"], "rejected": corrupt(row["answer"])})
            for row in rows
        )
    )
    overrides = [
        _checkpoint(tmp_path),
        *SMALL,
        *EVEN_STEPS,
        f"data.path={pairs}",
        "train.learning_rate=1e-4",
        f"eval.path={shared / 'data/gsm8k/test.jsonl'}",
        f"output={output}",
    ]
    done = runs.launch(runs.ROOT / "recipes/vrpo.yaml", *overrides, "train.max_steps=4")
    assert done.returncode == 0, done.stderr[-3000:]
    losses = {line["update"]: line["loss"] for line in runs.metrics(output) if "loss" in line}
    assert losses[1] == pytest.approx(0.693147, abs=1e-6)  # policy = reference: log 2
    assert sorted(losses) == [1, 2, 3, 4] and len(set(losses.values())) > 1
    _resumes(output, "recipes/vrpo.yaml", overrides, 6)
