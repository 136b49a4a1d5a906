"""The quickstart learns, through the real command line, on several seeds, without falling back on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from dllm_rl.evaluation.compare import compare_runs
from tests.e2e import runs


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_quickstart_learns_to_add(tmp_path: Path, seed: int) -> None:
    output = tmp_path / "run"
    done = runs.launch(runs.ROOT / "recipes/quickstart.yaml", f"output={output}", f"train.seed={seed}")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in runs.metrics(output) if "eval/arithmetic/accuracy" in line]
    accuracies = [line["eval/arithmetic/accuracy"] for line in lines]
    assert all(line["eval/arithmetic/n"] >= 500 for line in lines)
    assert len(accuracies) >= 11
    assert accuracies[0] < 0.60
    assert accuracies[-1] > 0.93
    for index, accuracy in enumerate(accuracies[1:], start=1):
        assert accuracy >= max(accuracies[:index]) - 0.05, accuracies
    (found,) = compare_runs(output / "eval/update-000000", output / "eval/update-000100")
    assert (found.first.accuracy, found.second.accuracy) == (accuracies[0], accuracies[-1])
    assert found.p_value < 1e-6 and found.better[0] < 20
    assert "arithmetic v1, prompt default, 1000 examples" in done.stderr + done.stdout
    assert f"{accuracies[0]:.3f} before, {accuracies[-1]:.3f} after" in done.stdout
