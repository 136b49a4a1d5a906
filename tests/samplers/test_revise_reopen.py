"""Blocks that a reviser opens again: through caches, and by rules that look at what is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from dllm_rl import rng
from dllm_rl.diffusion.trajectory import Op
from dllm_rl.samplers.cache import Dual, Prefix, Vicinity
from dllm_rl.samplers.canvas import Canvas, blank_canvas
from dllm_rl.samplers.drift import measure_drift
from dllm_rl.samplers.generate import begin, generate, trajectory
from dllm_rl.samplers.loop import advance
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.revise.base import Reads, Revision
from dllm_rl.toys.families import tiny_llada2, tiny_sdar
from tests.samplers.oracle import Table
from tests.samplers.remask_oracle import logs_of


@pytest.mark.parametrize("make", [tiny_llada2, tiny_sdar])
def test_the_exact_cache_stays_exact_when_earlier_blocks_are_opened_again(make):
    """It recomputes from the first block that changed, so the wider scope needs no refusal."""
    model, prompts = make(seed=1, block_size=4), [[5, 6], [7, 8, 9, 4, 2]]
    settings = {"gen_length": 12, "sampler": "rcr", "temperature": 1.0}
    fresh, cached = (generate(model, prompts, **settings, cache=cache) for cache in ("none", "block"))
    assert logs_of(cached) == logs_of(fresh)
    torch.testing.assert_close(cached.behaviour_logp, fresh.behaviour_logp, rtol=0, atol=1e-5)
    assert cached.exactness == "exact"
    assert measure_drift(model, cached).largest < 1e-5
    events, opened, later = cached.events, set(), []
    columns = (events.row, events.position, events.op)
    for row, position, op in zip(*(column.tolist() for column in columns), strict=True):
        opened.add((row, position))
        later.append(op == Op.REMASK and (row, position + 4) in opened)
    assert any(later), "some token was hidden after a later block was opened"


@dataclass(frozen=True, slots=True)
class SecondLook:
    """Hides the first position again, once, in the second block."""

    reads: ClassVar[Reads] = "written"

    def __call__(self, before: Canvas, after: Canvas, opinion: Proposal) -> Revision:
        assert (opinion.index >= after.block_start[opinion.row]).all(), "of the open block"
        again = torch.zeros_like(after.hidden)
        again[:, 0] = (after.block == 1) & (after.turn == 1)
        return Revision(again, torch.zeros_like(after.finished))


def test_a_rule_that_reads_what_is_written_may_open_earlier_blocks_too():
    model = Table(longest=5)
    request = Request(gen_length=4, block_length=2, temperature=1.0)
    sampler = replace(make_sampler(model.spec, "rl", {}, request), revise=SecondLook())
    state = begin(model, [[1]], sampler, rng.sample_keys(0, torch.tensor([0])))
    for _ in range(5):
        state = advance(state, sampler, model.spec.mask_id)
    out = trajectory(state, [[1]], model, sampler)
    assert bool(state.canvas.finished)
    assert [again for _, again in logs_of(out)[0]] == [set(), set(), {0}, set(), set()]
    assert measure_drift(model, out).largest < 1e-12


def test_a_full_block_stays_open_until_what_was_hidden_before_it_is_written():
    model = Table(longest=7)
    blank = blank_canvas(model, [[1]], (torch.arange(6) // 2)[None], torch.zeros(1, dtype=torch.int64))
    hidden = torch.tensor([[True, False, False, False, True, True]])
    opened = torch.arange(6)[None] < 4
    stands = replace(blank, hidden=hidden, opened=opened, block=torch.tensor([1]), turn=torch.tensor([1]))
    stands = replace(stands, opening=torch.tensor([2]))
    nobody = torch.zeros(1, dtype=torch.bool)
    same = stands.open_next_block(stay=nobody)
    assert (same.block.item(), same.turn.item(), same.opening.item()) == (1, 1, 2)
    assert same.eligible.tolist() == [[True] + [False] * 5] and not same.window[0, 0]
    full = replace(stands, hidden=hidden & (torch.arange(6) > 0)).open_next_block(stay=nobody)
    assert (full.block.item(), full.turn.item(), full.opening.item()) == (2, 0, 2)
    assert full.eligible.tolist() == [[False] * 4 + [True] * 2]


@pytest.mark.parametrize("policy", [Prefix(), Dual(), Vicinity(before=0, after=0, warmup=1)])
def test_a_column_revised_before_the_block_is_recomputed_once_it_is_written(policy):
    blank = blank_canvas(Table(longest=9), [[1]], (torch.arange(8) // 2)[None], torch.zeros(1, dtype=torch.int64))
    two = replace(blank, block=torch.tensor([2]), turn=torch.tensor([3]))
    changed = torch.zeros(1, 9, dtype=torch.bool)
    usual = policy.refresh(two, changed)
    assert not usual[0, :5].any() and usual[0, 5:7].all()
    changed[0, 2] = True
    assert torch.equal(policy.refresh(two, changed), usual | changed)
