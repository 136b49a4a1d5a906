from __future__ import annotations

import math
import statistics

import pytest
import torch

from dllm_rl.objectives import group_advantages

REWARD = [[1.0, 0.0, 0.5, 2.0], [-1.0, 3.0, 3.0, 0.25]]


def test_the_mean_baseline_by_hand() -> None:
    advantage = group_advantages(torch.tensor(REWARD))
    for row, group in zip(advantage.tolist(), REWARD, strict=True):
        assert row == pytest.approx([r - statistics.fmean(group) for r in group], abs=1e-6)


def test_the_leave_one_out_baseline_by_hand() -> None:
    advantage = group_advantages(torch.tensor(REWARD), baseline="leave_one_out")
    for row, group in zip(advantage.tolist(), REWARD, strict=True):
        others = [(sum(group) - r) / (len(group) - 1) for r in group]
        assert row == pytest.approx([r - o for r, o in zip(group, others, strict=True)], abs=1e-6)


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_scaling_divides_by_the_unbiased_standard_deviation(baseline: str) -> None:
    plain = group_advantages(torch.tensor(REWARD), baseline=baseline)
    scaled = group_advantages(torch.tensor(REWARD), baseline=baseline, scale="group_std")
    for row, raw, group in zip(scaled.tolist(), plain.tolist(), REWARD, strict=True):
        assert row == pytest.approx([a / statistics.stdev(group) for a in raw], rel=1e-5)


def test_the_defaults_are_the_mean_and_no_scale() -> None:
    reward = torch.tensor(REWARD)
    assert torch.equal(group_advantages(reward), group_advantages(reward, baseline="mean", scale="none"))


@pytest.mark.parametrize("scale", ["none", "group_std"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("value", [0.1, 1e8, -0.3, 0.0])
def test_equal_rewards_give_exactly_zeros_and_leave_other_groups_alone(baseline: str, scale: str, value: float) -> None:
    other = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.5]
    advantage = group_advantages(torch.tensor([[value] * 7, other]), baseline=baseline, scale=scale)
    assert advantage[0].tolist() == [0.0] * 7
    alone = group_advantages(torch.tensor([other]), baseline=baseline, scale=scale)
    assert torch.equal(advantage[1:], alone)
    assert advantage[1, 0] < 0 < advantage[1, -1]


@pytest.mark.parametrize("scale", ["none", "group_std"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_a_group_of_one_has_nothing_to_compare_with(baseline: str, scale: str) -> None:
    assert group_advantages(torch.tensor([[3.0], [-1.0]]), baseline=baseline, scale=scale).tolist() == [[0.0], [0.0]]


def test_a_group_of_two_by_hand() -> None:
    reward = torch.tensor([[1.0, 0.0]])
    assert group_advantages(reward, baseline="leave_one_out").tolist() == [[1.0, -1.0]]
    assert group_advantages(reward, scale="group_std")[0].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept_and_large_offsets_lose_nothing(dtype: torch.dtype) -> None:
    advantage = group_advantages(torch.tensor([[1e6, 1e6 + 1, 1e6 + 2]], dtype=dtype), scale="group_std")
    assert advantage.dtype == dtype
    assert advantage[0].tolist() == pytest.approx([-1.0, 0.0, 1.0], abs=1e-12)


@pytest.mark.parametrize("scale", ["none", "group_std"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_shifting_rewards_changes_nothing_and_groups_sum_to_zero(baseline: str, scale: str) -> None:
    reward = torch.rand(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    advantage = group_advantages(reward, baseline=baseline, scale=scale)
    assert torch.allclose(advantage.sum(1), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(group_advantages(reward + 7.0, baseline=baseline, scale=scale), advantage)
    factor = 1.0 if scale == "group_std" else 3.0
    assert torch.allclose(group_advantages(reward * 3.0, baseline=baseline, scale=scale), factor * advantage)


def test_advantages_of_integers_are_not_rounded() -> None:
    advantage = group_advantages(torch.tensor([[1, 0, 0, 0]]))
    assert advantage.dtype == torch.float32 and advantage.tolist() == [[0.75, -0.25, -0.25, -0.25]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_is_refused_by_place(value: float) -> None:
    with pytest.raises(ValueError, match=rf"reward \[1, 2\] is {value}"):
        group_advantages(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, value]]))


def test_unknown_options_are_refused() -> None:
    with pytest.raises((TypeError, ValueError), match="'median'"):
        group_advantages(torch.tensor(REWARD), baseline="median")  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError), match="'batch'"):
        group_advantages(torch.tensor(REWARD), scale="batch")  # type: ignore[arg-type]
