"""Decisions of rollouts, taken apart and put together, number by number."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_rl.diffusion.schedule import ScheduleTrace


def trace(rows: int, steps: int, start: int = 1, *, cfg: bool = False) -> ScheduleTrace:
    """Every number in it is another one, and none is zero."""
    cells = torch.arange(rows * steps, dtype=torch.float64).view(rows, steps) + start
    return ScheduleTrace(
        features=torch.stack([cells, cells + 0.25, cells + 0.5], dim=-1),
        action=torch.stack([cells + 0.1, cells + 0.2], dim=-1),
        logp=-cells,
        commit=cells / 100,
        temperature=cells + 0.75,
        cfg_scale=cells * 2 if cfg else None,
        ranking_temperature=None,
        sigma=0.5,
        learned=("commit", "temperature"),
    )


def parts(found: ScheduleTrace) -> list[Tensor]:
    assert found.temperature is not None
    return [found.features, found.action, found.logp, found.commit, found.temperature]


def test_rows_are_selected_in_order_with_repeats() -> None:
    whole = trace(3, 2, cfg=True)
    found = whole.select(torch.tensor([2, 0, 2]))
    for of_found, of_whole in zip(parts(found), parts(whole), strict=True):
        assert torch.equal(of_found, torch.stack([of_whole[2], of_whole[0], of_whole[2]]))
    assert found.cfg_scale is not None and whole.cfg_scale is not None
    assert torch.equal(found.cfg_scale, whole.cfg_scale[[2, 0, 2]])
    assert found.ranking_temperature is None and found.sigma == 0.5 and found.learned == ("commit", "temperature")


def test_steps_follow_each_other() -> None:
    first, second = trace(2, 1), trace(2, 3, start=10)
    joined = ScheduleTrace.of_steps([first, second])
    for of_joined, a, b in zip(parts(joined), parts(first), parts(second), strict=True):
        assert of_joined.shape[:2] == (2, 4)
        assert torch.equal(of_joined[:, :1], a) and torch.equal(of_joined[:, 1:], b)
    assert joined.cfg_scale is None and joined.sigma == 0.5


def test_rows_with_fewer_steps_are_filled_with_zeros() -> None:
    short, long = trace(1, 1), trace(2, 3, start=10)
    for given in ([short, long], [long, short]):
        joined = ScheduleTrace.of_rows(given)
        first = 0
        for part in given:
            rows, steps = part.logp.shape
            for of_joined, of_part in zip(parts(joined), parts(part), strict=True):
                own = of_joined[first : first + rows]
                assert of_joined.shape[:2] == (3, 3)
                assert torch.equal(own[:, :steps], of_part) and not own[:, steps:].any()
            first += rows


def test_one_part_alone_is_itself() -> None:
    for joined in (ScheduleTrace.of_steps([trace(2, 3)]), ScheduleTrace.of_rows([trace(2, 3)])):
        assert all(torch.equal(a, b) for a, b in zip(parts(joined), parts(trace(2, 3)), strict=True))
