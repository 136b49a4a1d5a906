"""A run that learns from a judge and a teacher behind HTTP, shaped by speed, with a reward that is only watched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e import runs
from tests.rewards.server import serving

REWARD = (
    "reward={functions: [rewards/judge.py:verdict, rewards/arithmetic.py:correctness, "
    "rewards/teacher.py:log_likelihood], weights: [1, 0, 0], speed_exponent: 1}"
)


def adds(question: str) -> str:
    """A judge that can add."""
    found = re.search(
        r"<question>\n(\d+)\+(\d+)=\n</question>\n\n<answer_to_grade>\n(.*)\n</answer_to_grade>", question
    )
    right = found is not None and found[3].isdigit() and int(found[1]) + int(found[2]) == int(found[3])
    return f"Let me see.\nVerdict: {10 * right}"


@pytest.mark.slow
def test_a_run_learns_from_a_judge_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        server.judge = adds
        for role in ("JUDGE", "TEACHER"):
            monkeypatch.setenv(f"DLLM_RL_{role}_URL", server.url)
            monkeypatch.setenv(f"DLLM_RL_{role}_MODEL", "m")
        output = tmp_path / "run"
        done = runs.launch(
            runs.ROOT / "recipes/quickstart.yaml",
            *(REWARD, f"output={output}", "train.max_steps=25", "eval.every=0", "eval.limit=500"),
        )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in runs.metrics(output) if "reward/mean" in line]
    assert len(lines) == 25
    for line in lines:
        assert line["reward/unshaped"] == pytest.approx(line["reward/judge.verdict"], abs=1e-12)
        assert line["reward/judge.verdict"] == pytest.approx(line["reward/arithmetic.correctness"], abs=1e-12)
        assert line["reward/mean"] == pytest.approx(line["reward/unshaped"] / 5, abs=1e-12)  # five forwards of five
        assert line["reward/judge.verdict/applies"] == 1.0
        assert line["reward/teacher.log_likelihood"] < 0
    accuracy = [line["eval/arithmetic/accuracy"] for line in runs.metrics(output) if "eval/arithmetic/accuracy" in line]
    assert accuracy[-1] > accuracy[0] + 0.1
