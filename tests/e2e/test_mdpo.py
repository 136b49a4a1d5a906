"""MDPO learns the quickstart's task through the command line, with an eighth of its rollouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import runs

MDPO = "algorithm={type: mdpo, kl_coefficient: 0.0}"


@pytest.mark.slow
def test_mdpo_learns_to_add(tmp_path: Path) -> None:
    output = tmp_path / "run"
    settings = ["rollout.sampler=rcr", "train.max_steps=25", "train.per_device_train_batch_size=16", "eval.every=0"]
    done = runs.launch(runs.ROOT / "recipes/quickstart.yaml", MDPO, *settings, "eval.limit=400", f"output={output}")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = runs.metrics(output)
    before, after = (line["eval/arithmetic/accuracy"] for line in lines if "eval/arithmetic/accuracy" in line)
    assert before < 0.4 and after > 0.8, (before, after)
    first, *_, last = (line for line in lines if "reward/best_step" in line)
    assert first["reward/best_step"] == pytest.approx(first["reward/mean"] + first["reward/over_denoised"])
    assert last["reward/mean"] > first["reward/mean"] + 0.2 and first["policy/ratio"] == pytest.approx(1.0, abs=1e-3)
