"""Which rows an update sees: every row once per pass, and nothing of it depends on the layout."""

from __future__ import annotations

import pytest
import torch

from dllm_rl.training.order import Layout, Visit, visit_at, visit_keys


@pytest.mark.parametrize("num_rows,slots", [(5, 4), (8, 4), (3, 7), (1, 2)])
def test_every_pass_visits_every_row_once(num_rows: int, slots: int) -> None:
    visits = [visit_at(0, window, slot, slots, num_rows) for window in range(2 * num_rows) for slot in range(slots)]
    for repeat in range(len(visits) // num_rows):
        one_pass = visits[repeat * num_rows : (repeat + 1) * num_rows]
        assert sorted(v.row for v in one_pass) == list(range(num_rows))
        assert {v.repeat for v in one_pass} == {repeat}


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    order = lambda seed, repeat: tuple(visit_at(seed, repeat, s, 50, 50).row for s in range(50))  # noqa: E731
    assert len({order(0, 0), order(0, 1), order(1, 0)}) == 3


def test_layouts_share_out_the_same_slots() -> None:
    for world, micro, per_device in ((1, 1, 12), (1, 4, 3), (2, 3, 2), (3, 2, 2), (4, 1, 3)):
        taken = [
            slot
            for m in range(micro)
            for rank in range(world)
            for slot in Layout(rank, world, micro, per_device).slots(m)
        ]
        assert sorted(taken) == list(range(12))
        assert Layout(0, world, micro, per_device).slots_per_update == 12


def test_keys_belong_to_the_sample_and_not_to_its_place() -> None:
    a, b = Visit(3, 0), Visit(1, 2)
    together, alone = visit_keys(5, [a, b], 3), visit_keys(5, [b], 3)
    assert torch.equal(together[3:], alone)
    assert len(set(visit_keys(5, [a, b, Visit(3, 1), Visit(1, 3)], 4).tolist())) == 16
    assert not torch.equal(visit_keys(5, [a], 1), visit_keys(6, [a], 1))
