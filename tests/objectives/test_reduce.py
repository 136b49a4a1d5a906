from __future__ import annotations

import math

import pytest
import torch

from dllm_rl.objectives import Mean, effective_share, masked_mean, mean_of, variance_of_mean


def test_a_mean_of_parts_is_the_mean_of_the_whole() -> None:
    values = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    where = torch.tensor([True] * 5 + [False, True] * 3 + [False])
    whole = masked_mean(values, where)
    parts = (
        masked_mean(values[:2], where[:2]) + masked_mean(values[2:7], where[2:7]) + masked_mean(values[7:], where[7:])
    )
    assert float(parts.value) == pytest.approx(float(whole.value), rel=1e-12)
    assert float(whole.value) == pytest.approx(sum(values[where].tolist()) / 8, rel=1e-12)
    assert int(parts.count) == 8


def test_what_is_left_out_does_not_matter_and_gets_no_gradient() -> None:
    values = torch.tensor([1.0, math.inf, 3.0, math.nan], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, False, True, False]))
    assert float(mean.value.detach()) == 2.0
    mean.total.backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_nothing_counted_is_not_a_number() -> None:
    assert math.isnan(float(masked_mean(torch.ones(2), torch.zeros(2, dtype=torch.bool)).value))


def test_means_for_reports_count_everything_and_carry_no_gradient() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0]], requires_grad=True)
    mean = mean_of(values)
    assert (float(mean.total), int(mean.count), float(mean.value)) == (12.0, 4, 3.0)
    assert not mean.total.requires_grad


def test_a_mean_of_given_sums() -> None:
    mean = Mean(torch.tensor(6.0), torch.tensor(4)) + Mean(torch.tensor(-1.0), torch.tensor(6))
    assert (float(mean.total), int(mean.count), float(mean.value)) == (5.0, 10, 0.5)


def test_the_effective_share_of_equal_weights_is_one_and_of_a_single_one_the_inverse_of_their_number() -> None:
    everything = torch.ones(4, dtype=torch.bool)
    assert float(effective_share(torch.zeros(4), everything).value) == 1.0
    assert float(effective_share(torch.full((4,), math.log(2.0)).double(), everything).value) == pytest.approx(1.0)
    assert float(effective_share(torch.tensor([0.0] + [-math.inf] * 3), everything).value) == 0.25
    half = effective_share(
        torch.tensor([0.0, math.log(3.0), 9.0, 9.0], dtype=torch.float64), everything & (torch.arange(4) < 2)
    )
    assert float(half.value) == pytest.approx((1 + 3) ** 2 / (2 * (1 + 9)), rel=1e-12)


def test_the_effective_share_of_parts_added_is_that_of_the_whole() -> None:
    logs = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    where = torch.tensor([True] * 5 + [False, True] * 3 + [False])
    weights = logs.detach().exp()[where].tolist()
    expected = sum(weights) ** 2 / (8 * sum(w * w for w in weights))
    parts = [effective_share(logs[part], where[part]) for part in (slice(2), slice(2, 7), slice(7, 12))]
    whole = parts[0] + parts[1] + parts[2]
    assert float(whole.value) == pytest.approx(expected, rel=1e-12) and int(whole.count) == 8
    assert not whole.total.requires_grad
    assert float(Mean(parts[0].value, torch.tensor(1)).value) != pytest.approx(expected), "a mean of shares is not one"


def test_the_variance_of_a_mean_is_unbiased() -> None:
    """Over all samples of three draws from a law on four values."""
    values = torch.tensor([0.3, -1.0, 2.5, 4.0], dtype=torch.float64)
    law = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
    index = torch.cartesian_prod(*[torch.arange(4)] * 3)
    samples, chance = values[index], law[index].prod(1)
    mean = (law * values).sum()
    assert float((chance * (samples.mean(1) - mean).square()).sum()) == pytest.approx(
        float((chance * variance_of_mean(samples)).sum()), rel=1e-12
    )


def test_reports_of_two_kinds_do_not_add() -> None:
    with pytest.raises(ValueError, match="shorter"):
        effective_share(torch.zeros(2), torch.ones(2, dtype=torch.bool)) + Mean(torch.tensor(1.0), torch.tensor(1))
