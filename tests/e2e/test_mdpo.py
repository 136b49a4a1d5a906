"""MDPO learns the quickstart's task through the command line, in a quarter of its updates."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import runs

MDPO = "algorithm={type: mdpo, kl_coefficient: 0.0}"


@pytest.mark.slow
def test_mdpo_learns_to_add(tmp_path: Path) -> None:
    output = tmp_path / "run"
    settings = ["rollout.sampler=rcr", "train.max_steps=25", "eval.every=0", "eval.limit=500", f"output={output}"]
    done = runs.launch(runs.ROOT / "recipes/quickstart.yaml", MDPO, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = runs.metrics(output)
    before, after = (line["eval/arithmetic/accuracy"] for line in lines if "eval/arithmetic/accuracy" in line)
    assert before < 0.4 and after > 0.8, (before, after)
    first, *_, last = (line for line in lines if "reward/best_step" in line)
    assert first["reward/best_step"] == pytest.approx(first["reward/mean"] + first["reward/over_denoised"])
    assert last["reward/mean"] > first["reward/mean"] + 0.2 and first["policy/ratio"] == pytest.approx(1.0, abs=1e-3)
