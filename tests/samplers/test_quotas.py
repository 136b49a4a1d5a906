"""How many positions a step writes, and the blocks that go with it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from dllm_rl.samplers.blocks import peel
from dllm_rl.samplers.generate import generate
from dllm_rl.samplers.quota import MaskRatio, TimeFloor, revealed_share
from tests.samplers.oracle import Table
from tests.samplers.test_parts import standing


def counts(quota, length: int, steps: int) -> list[int]:
    return [int(quota(standing(length, turn))) for turn in range(steps)]


@pytest.mark.parametrize("mode", ["linear", "cosine", "pow2", "pow0.5", "pow3", "log", "exp"])
@pytest.mark.parametrize(("length", "steps"), [(16, 8), (7, 7), (5, 9), (1, 3), (33, 1)])
def test_mask_ratios_add_up_and_are_never_negative(mode, length, steps):
    made = counts(MaskRatio(mode, steps), length, steps)
    assert sum(made) == length and min(made) >= 0
    assert counts(MaskRatio(mode, steps), length, steps + 1)[-1] == 0


def test_mask_ratios_are_those_of_their_formulas():
    ratio = {
        "linear": lambda r: 1 - r,
        "cosine": lambda r: math.cos(math.pi * r / 2),
        "pow2": lambda r: 1 - r**2,
        "pow0.5": lambda r: 1 - r**0.5,
        "log": lambda r: min(1.0, -math.log(r) / math.log(50)),
        "exp": lambda r: 1 - 50 ** (r - 1),
    }
    for mode, of in ratio.items():
        left = [50, *(math.floor(50 * of(k / 7)) for k in range(1, 7)), 0]
        assert counts(MaskRatio(mode, 7), 50, 7) == [a - b for a, b in pairwise(left)], mode


def test_concave_ratios_write_little_at_first():
    first = {mode: counts(MaskRatio(mode, 4), 40, 4)[0] for mode in ("pow3", "pow2", "cosine", "linear", "pow0.5")}
    assert list(first.values()) == sorted(first.values())


@pytest.mark.parametrize(
    ("gen_length", "steps", "count", "lengths"),
    [
        (128, 7, 4, (15, 16, 32, 65)),
        (16, 4, 1, (16,)),
        (16, 4, 2, (7, 9)),
        (16, 4, 4, (1, 2, 4, 9)),
        (24, 4, 2, (7, 17)),
        (15, 4, 3, (3, 4, 8)),
        (1, 1, 1, (1,)),
    ],
)
def test_blocks_of_powers_of_two_are_peeled_off_the_right_end(gen_length, steps, count, lengths):
    assert peel(gen_length, steps, count).lengths == lengths


@pytest.mark.parametrize(("gen_length", "block_num", "steps"), [(16, 1, None), (24, 3, None), (15, 4, 4), (16, 2, 3)])
def test_ascending_steps_write_twice_as_much_each_time(gen_length, block_num, steps):
    """Whatever the blocks, since all but the first are as long as the step that fills them."""
    model = Table(longest=1)
    model.max_positions = None
    model.logits_at = lambda canvas, where, attend=None: torch.randn(int(where.sum()), 4, dtype=torch.float64)
    out = generate(model, [[1]], gen_length=gen_length, sampler="ass", block_num=block_num, steps=steps)
    made = torch.bincount(out.reveal_step[0])[1:].tolist()
    assert out.nfe == [len(made)] == [steps or 4]
    assert made[:-1] == [2**k for k in range(len(made) - 1)] and sum(made) == gen_length


def test_a_single_position_takes_one_step():
    assert generate(Table(), [[1]], gen_length=1, sampler="ass").nfe == [1]


def test_the_share_revealed_is_that_of_the_times():
    eps, steps = 1e-3, 4
    times = torch.linspace(1, eps, steps + 1, dtype=torch.float64)
    expected = 1 - times[1:] / times[:-1]
    share = revealed_share(torch.arange(steps), steps, eps)
    torch.testing.assert_close(share[:-1], expected[:-1], rtol=0, atol=1e-15)
    assert share[-1] == 1
    assert revealed_share(torch.arange(5), 5, 0.0).tolist() == pytest.approx([1 / 5, 1 / 4, 1 / 3, 1 / 2, 1])


def dream(prompts, length: int, **settings):
    return generate(Table(longest=7), prompts, gen_length=length, temperature=1.0, sampler="dream", **settings)


def test_rounding_down_writes_nothing_first_and_two_at_last():
    """A forward is made all the same."""
    out = dream([[1]], 5)
    assert sorted(out.reveal_step[0].tolist()) == [2, 3, 4, 5, 5]
    assert out.nfe == [5]


def test_each_row_has_a_quota_of_its_own():
    """The published count is a mean over the batch."""
    fixed = [[None] * 6, [0, 0, 0, 0, None, None], [None, 1, None, None, 1, None]]
    settings = {"steps": 3, "eps": 0.1}
    together = dream([[1]] * 3, 6, fixed=fixed, **settings)
    for row, given in enumerate(fixed):
        alone = dream([[1]], 6, fixed=[given], sample_ids=[row], **settings)
        assert alone.reveal_step.tolist() == [together.reveal_step[row].tolist()]
        left, expected = given.count(None), []
        for turn in range(3):
            t, s = 1 - 0.9 * turn / 3, 1 - 0.9 * (turn + 1) / 3
            expected.append(left if turn == 2 else math.floor(left * (1 - s / t)))
            left -= expected[-1]
        assert torch.bincount(together.reveal_step[row], minlength=4)[1:].tolist() == expected


def test_a_time_that_has_run_out_writes_what_is_left():
    assert counts(TimeFloor(1, 1e-3), 6, 1)[-1] == 0  # nothing is open on that canvas
    assert dream([[1]], 4, steps=1).nfe == [1]
