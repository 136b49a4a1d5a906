from __future__ import annotations

import math

import pytest
import torch

from dllm_rl.objectives import Mean, masked_mean
from dllm_rl.objectives.reduce import mean_of


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
