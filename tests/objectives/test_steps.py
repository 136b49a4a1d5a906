"""Advantages of steps against the paper's worked numbers, and what they promise about equals and about early ends."""

from __future__ import annotations

import pytest
import torch

from dllm_rl.objectives.advantages import group_advantages
from dllm_rl.objectives.steps import step_advantages, step_exists, step_values, telling_steps

HISTORY = [0.0, 0.0, 1.0, 1.0, 0.0, 1.0]


def rewards(seed: int = 0, prompts: int = 3, group: int = 4, steps: int = 5) -> torch.Tensor:
    return torch.rand(prompts, group, steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full(reward: torch.Tensor) -> torch.Tensor:
    return torch.full(reward.shape[:2], reward.shape[2])


def test_the_worked_example_of_the_paper() -> None:
    value = step_values(torch.tensor([[HISTORY]]), torch.tensor([[6]]))
    torch.testing.assert_close(
        value[0, 0], torch.tensor([1.60, 1.75, 8 / 3, 1.50, 1.00, 3.00], dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_values_are_the_papers_sums_rollout_by_rollout_whatever_stands_after_their_end() -> None:
    reward, num_steps = rewards(), torch.tensor([[5, 3, 1, 4], [1, 1, 5, 2], [2, 2, 2, 2]])
    found = step_values(reward.masked_fill(~step_exists(num_steps, 5), float("nan")), num_steps)
    for p, group in enumerate(num_steps.tolist()):
        for g, n in enumerate(group):
            r = reward[p, g, :n].tolist()
            for i in range(n):
                u = r[i] - (r[i - 1] if i else 0.0) + 1
                v = sum(r[i + 1 :]) / (n - 1 - i) if i < n - 1 else r[i]
                assert float(found[p, g, i]) == pytest.approx(u + v, abs=1e-12)
            assert not found[p, g, n:].any()


@pytest.mark.parametrize("scale", ["none", "group_std"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_each_step_is_a_group_of_its_own(baseline: str, scale: str) -> None:
    reward = rewards()
    value = step_values(reward, full(reward))
    found = step_advantages(reward, full(reward), baseline=baseline, scale=scale)
    for step in range(5):
        expected = group_advantages(value[:, :, step], baseline=baseline, scale=scale)
        torch.testing.assert_close(found[:, :, step], expected, rtol=0, atol=1e-9)
    published = value - value.mean(1, keepdim=True)
    if scale == "group_std":
        published = published / value.std(1, keepdim=True)
    if baseline == "mean":
        torch.testing.assert_close(found, published, rtol=0, atol=1e-9)


def test_the_one_added_to_every_gain_changes_nothing() -> None:
    """Subtracted again from every value, group by group."""
    reward = rewards()
    value = step_values(reward, full(reward)) - 1
    expected = (value - value.mean(1, keepdim=True)) / value.std(1, keepdim=True)
    found = step_advantages(reward, full(reward), scale="group_std")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", ["none", "group_std"])
def test_rollouts_with_the_same_rewards_have_no_advantage(scale: str) -> None:
    same = torch.tensor([HISTORY]).expand(4, -1)[None] * 0.7
    assert torch.equal(step_advantages(same, full(same), scale=scale), torch.zeros(1, 4, 6, dtype=torch.float64))


def test_values_that_are_equal_on_paper_are_not_told_apart_by_rounding() -> None:
    """At the first step: 0 + 1 + 0.3 / 2 and 0.1 + 1 + 0.1 / 2, which differ in the last bit."""
    reward = torch.tensor([[[0.0, 0.0, 0.3], [0.1, 0.0, 0.1]]], dtype=torch.float64)
    value = step_values(reward, full(reward))[0, :, 0]
    assert len(set(value.tolist())) > 1, "the case should be one where rounding shows"
    assert not step_advantages(reward, full(reward), scale="group_std")[0, :, 0].any()
    near, apart = (torch.tensor([[[0.0], [gap]]], dtype=torch.float64) for gap in (2e-13, 3e-13))  # in a value, twice
    assert not step_advantages(near, full(near)).any() and step_advantages(apart, full(apart)).all()


def test_finished_rollouts_are_not_compared_at_later_steps() -> None:
    reward, num_steps = rewards(prompts=1), torch.tensor([[5, 2, 4, 5]])
    found = step_advantages(reward, num_steps, scale="group_std")[0]
    value = step_values(reward, num_steps)[0]
    for step, rows in ((0, [0, 1, 2, 3]), (1, [0, 1, 2, 3]), (2, [0, 2, 3]), (3, [0, 2, 3]), (4, [0, 3])):
        own = value[rows, step]
        torch.testing.assert_close(found[rows, step], (own - own.mean()) / own.std(), rtol=0, atol=1e-9)
        assert not found[[row for row in range(4) if row not in rows], step].any()
    alone = step_advantages(reward, torch.tensor([[5, 2, 2, 2]]), baseline="leave_one_out")
    assert not alone[0, :, 2:].any() and alone[0, :, :2].all()


def test_a_group_has_the_same_bits_whatever_groups_are_beside_it() -> None:
    reward = rewards(prompts=7, group=8, steps=9)
    together = step_advantages(reward, full(reward), scale="group_std")
    apart = [step_advantages(group[None], full(group[None]), scale="group_std") for group in reward]
    assert torch.equal(together, torch.cat(apart))


def test_kept_are_the_steps_with_the_largest_sum_of_magnitudes() -> None:
    advantage = torch.tensor([[[1.0, -3.0, 0.0, 2.0], [-1.0, 3.0, 0.0, -2.0]], [[0.0] * 4, [0.0, 0.0, 0.0, -0.1]]])
    kept = telling_steps(advantage.double(), 2)
    assert kept.tolist() == [[False, True, False, True], [True, False, False, True]]
    assert telling_steps(advantage.double(), None).all() and telling_steps(advantage.double(), 9).all()


def test_of_steps_that_tell_as_much_the_first_is_kept() -> None:
    """Sums that are equal on paper: 0.1 + 0.2 + 0.3 in two orders."""
    advantage = torch.tensor([[[0.3, 0.1], [-0.2, 0.2], [0.1, -0.3]]], dtype=torch.float64)
    for order in ([0, 1], [1, 0]):
        assert telling_steps(advantage[..., order], 1).tolist() == [[True, False]]
    assert telling_steps(torch.ones(1, 2, 500, dtype=torch.float64), 8)[0].nonzero()[:, 0].tolist() == list(range(8))


def test_a_reward_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="expected finite numbers"):
        step_advantages(torch.tensor([[[float("nan")], [0.0]]]), torch.ones(1, 2, dtype=torch.int64))
