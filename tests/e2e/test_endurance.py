"""Small shares of `make endurance`: kills at random moments, and the memory of a longer run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e import runs


@pytest.mark.slow
def test_killed_runs_end_where_undisturbed_ones_end(tmp_path: Path) -> None:
    """Six kills, three of them of runs of two processes; the tool judges each and fails if one is not as it must be."""
    out = tmp_path / "kills.json"
    done = runs.run([runs.PYTHON, "-m", "tests.tools.kills", "--kills", "6", "--launched", "0", "--out", str(out)])
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = json.loads(out.read_text())["kills"]
    assert len(rows) == 6 and all(row["same_bits"] for row in rows if row["processes"] == 1)
    assert all(row["resumed_from"] == row["whole_at_kill"] for row in rows)
    assert {row["processes"] for row in rows} == {1, 2} and max(row["distance"] for row in rows) <= 1e-6


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_updates(tmp_path: Path) -> None:
    out = tmp_path / "growth.json"
    done = runs.run([runs.PYTHON, "-m", "tests.tools.growth", "--updates", "200", "--out", str(out)])
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert [run["verdict"] for run in json.loads(out.read_text())["runs"]] == ["ok", "ok"]
