"""What benchmarks measure is what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import measure
from benchmarks.measure import Cost

MEGABYTE = 10**6


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's accounts of memory")
def test_the_peak_is_what_lived_at_once_and_not_what_stood_before() -> None:
    kept = torch.ones(100 * MEGABYTE // 4)

    def two_at_once_then_one() -> None:
        one, other = torch.ones(80 * MEGABYTE // 4), torch.ones(80 * MEGABYTE // 4)
        del one, other
        torch.ones(80 * MEGABYTE // 4)

    assert 155 < measure.cost(two_at_once_then_one).peak_mb < 175
    assert 78 < measure.cost(lambda: torch.ones(80 * MEGABYTE // 4)).peak_mb < 95
    assert kept[0] == 1


def test_sides_take_turns() -> None:
    calls: list[str] = []
    costs = measure.interleaved({"plain": lambda: calls.append("p"), "dllm_rl": lambda: calls.append("o")}, repeats=3)
    assert calls == ["p", "o"] * 3
    assert [len(each) for each in costs.values()] == [3, 3]


def test_ratios_are_within_repeats_and_then_the_median() -> None:
    plain = [Cost(10.0, 4.0, 0.0), Cost(100.0, 4.0, 0.0), Cost(12.0, 5.0, 0.0)]
    ours = [Cost(5.0, 1.0, 0.0), Cost(25.0, 2.0, 0.0), Cost(4.0, 1.0, 0.0)]
    assert measure.times_faster(plain, ours) == {"times_faster": 3.0, "times_faster_cpu": 4.0}
    assert measure.medians(plain) == {"seconds": 12.0, "cpu_seconds": 4.0}


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LEAST_FREE_GB", 1e6)
    with pytest.raises(SystemExit, match="GB of memory are free; expected at least 1000000.0 GB"):
        measure.refuse_little_memory()
