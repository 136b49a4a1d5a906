"""Benchmarks of updates, rollouts, steps, rows and processes still run, and print a table of both sides."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES = {
    "update": ["diffu-GRPO", "VRPO", "CJ-GRPO"],
    "rollout": ["plain", "llada", "rl"],
    "step": ["rollout", "reward", "scoring", "backward", "optimiser", "all"],
    "layout": ["6 completions of 64 after a prompt of 200", "6 completions of one prompt of 30, 2 a forward"],
    "scaling": ["diffu-GRPO, plain", "diffu-GRPO, dllm_rl"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_a_benchmark_runs(name: str, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--repeats", "1", "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    table = [line for line in found.stdout.splitlines() if line.startswith("|")]
    assert all(any(f"| {text} |" in line for line in table) for text in LINES[name]), found.stdout
    assert not list(tmp_path.iterdir()), "numbers of small sizes are not kept"
