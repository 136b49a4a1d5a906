from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dllm_rl.objectives import clipped_surrogate, is_clipped, log_ratio, reinforce

LEVELS = ["token", "sequence"]


def draws(rows: int = 6, length: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logp = -3 * torch.rand(rows, length, generator=generator, dtype=torch.float64)
    behaviour = logp + 0.6 * torch.randn(rows, length, generator=generator, dtype=torch.float64)
    advantage = torch.randn(rows, generator=generator, dtype=torch.float64)
    scored = torch.rand(rows, length, generator=generator) < 0.7
    scored[:, 0] = True
    return logp, behaviour, advantage, scored


# --- ratios ----------------------------------------------------------------------------------------------------------


def test_a_token_ratio_is_the_difference() -> None:
    logp, behaviour, _, scored = draws()
    ratio = log_ratio(logp, behaviour, scored)
    assert torch.equal(ratio[scored], (logp - behaviour)[scored])
    assert (ratio[~scored] == 0).all()


def test_a_sequence_ratio_is_the_mean_over_scored_positions_at_each_of_them() -> None:
    logp, behaviour, _, scored = draws()
    ratio = log_ratio(logp, behaviour, scored, level="sequence")
    for row in range(len(logp)):
        mean = sum((logp - behaviour)[row, i].item() for i in range(5) if scored[row, i]) / int(scored[row].sum())
        assert ratio[row].tolist() == pytest.approx([mean * bool(s) for s in scored[row]], abs=1e-12)


def test_the_sequence_ratio_of_one_scored_position_is_its_token_ratio() -> None:
    logp, behaviour, _, scored = draws()
    scored = torch.zeros_like(scored)
    scored[:, 2] = True
    assert torch.equal(log_ratio(logp, behaviour, scored, level="sequence"), log_ratio(logp, behaviour, scored))


def test_the_sequence_ratio_to_the_length_is_the_ratio_of_sequence_likelihoods() -> None:
    logp, behaviour, _, scored = draws()
    ratio = log_ratio(logp, behaviour, scored, level="sequence")
    whole = ((logp - behaviour) * scored).sum(1)
    assert torch.allclose(ratio.sum(1), whole)


@pytest.mark.parametrize("level", LEVELS)
def test_a_row_without_scored_positions_is_zero(level: str) -> None:
    logp, behaviour, advantage, scored = draws()
    scored[2] = False
    logp.requires_grad_()
    out = clipped_surrogate(logp, behaviour, advantage, scored, clip_low=0.2, clip_high=0.2, level=level)
    assert out[2].tolist() == [0.0] * 5
    assert log_ratio(logp, behaviour, scored, level=level)[2].tolist() == [0.0] * 5
    out.sum().backward()
    assert logp.grad is not None
    assert logp.grad.isfinite().all()
    assert (logp.grad[2] == 0).all()


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises((TypeError, ValueError), match="'word'"):
        log_ratio(*draws()[:2], draws()[3], level="word")  # type: ignore[arg-type]


# --- the clipped surrogate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "clipped"),
    [
        (1.0, 2.0, 2.0, False),
        (1.1, 2.0, 2.2, False),
        (1.5, 2.0, 2.6, True),  # up to 1 + 0.3
        (0.5, 2.0, 1.0, False),  # pulled back up
        (0.5, -2.0, -1.6, True),  # down to 1 - 0.2
        (0.9, -2.0, -1.8, False),
        (1.5, -2.0, -3.0, False),  # pulled back down
        (1.5, 0.0, 0.0, False),
        (0.5, 0.0, 0.0, False),
    ],
)
def test_values_by_hand(ratio: float, advantage: float, value: float, clipped: bool) -> None:
    logp = torch.tensor([[math.log(ratio) - 1.0]], dtype=torch.float64, requires_grad=True)
    arguments = logp, torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([advantage]), torch.tensor([[True]])
    out = clipped_surrogate(*arguments, clip_low=0.2, clip_high=0.3)
    assert out.item() == pytest.approx(value, abs=1e-7)
    out.sum().backward()
    assert logp.grad is not None
    assert logp.grad.item() == pytest.approx(0.0 if clipped else value, abs=1e-7)
    assert is_clipped(*arguments, clip_low=0.2, clip_high=0.3).item() is clipped


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(3))
def test_the_mathematics_of_trl(level: str, seed: int) -> None:
    """TRL's GRPOTrainer._compute_loss, loss types grpo and dapo, transcribed; its loss is to be minimised."""
    logp, behaviour, advantage, scored = draws(seed=seed)
    ours, theirs = (logp.clone().requires_grad_() for _ in range(2))
    value = clipped_surrogate(ours, behaviour, advantage, scored, clip_low=0.2, clip_high=0.28, level=level)
    weights = theirs - behaviour
    if level == "sequence":
        weights = ((weights * scored).sum(-1) / scored.sum(-1).clamp(min=1.0)).unsqueeze(-1)
    coef_1 = torch.exp(weights)
    coef_2 = torch.clamp(coef_1, 1 - 0.2, 1 + 0.28)
    loss = -torch.min(coef_1 * advantage[:, None], coef_2 * advantage[:, None]) * scored
    assert torch.allclose(-value, loss, atol=1e-12)
    value.sum().backward()
    (-loss).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-12)
    low = (coef_1 < 1 - 0.2) & (advantage[:, None] < 0)
    high = (coef_1 > 1 + 0.28) & (advantage[:, None] > 0)
    clipped = is_clipped(logp, behaviour, advantage, scored, clip_low=0.2, clip_high=0.28, level=level)
    assert torch.equal(clipped, (low | high) & scored)


@pytest.mark.parametrize("level", LEVELS)
def test_on_policy_the_value_is_the_advantage_and_the_gradient_is_the_policy_gradient(level: str) -> None:
    logp, _, advantage, scored = draws()
    logp.requires_grad_()
    value = clipped_surrogate(logp, logp, advantage, scored, clip_low=0.2, clip_high=0.2, level=level)
    assert torch.equal(value, advantage[:, None] * scored)
    (clipped,) = torch.autograd.grad(value.sum(), logp)
    (plain,) = torch.autograd.grad(reinforce(logp, advantage, scored).sum(), logp)
    assert torch.allclose(clipped, plain, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_infinite_clips_are_importance_sampling(level: str) -> None:
    logp, behaviour, advantage, scored = draws()
    value = clipped_surrogate(logp, behaviour, advantage, scored, clip_low=1.0, clip_high=math.inf, level=level)
    ratio = log_ratio(logp, behaviour, scored, level=level).exp()
    assert torch.allclose(value, ratio * advantage[:, None] * scored)


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_flow_into_the_policy_only(level: str) -> None:
    logp, behaviour, advantage, scored = draws()
    logp.requires_grad_()
    behaviour.requires_grad_()
    clipped_surrogate(logp, behaviour, advantage, scored, clip_low=0.2, clip_high=0.2, level=level).sum().backward()
    assert behaviour.grad is None
    assert logp.grad is not None
    assert (logp.grad[~scored] == 0).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("wild", [1e30, -1e30, math.inf, -math.inf, math.nan])
def test_what_is_not_scored_does_not_matter(level: str, wild: float) -> None:
    logp, behaviour, advantage, scored = draws()

    def run(fill: float) -> list[Tensor]:
        mine = logp.masked_fill(~scored, fill).requires_grad_()
        theirs = behaviour.masked_fill(~scored, -fill)
        value = clipped_surrogate(mine, theirs, advantage, scored, clip_low=0.2, clip_high=0.2, level=level)
        plain = reinforce(mine, advantage, scored)
        (gradient,) = torch.autograd.grad(value.sum() + plain.sum(), mine)
        hit = is_clipped(mine, theirs, advantage, scored, clip_low=0.2, clip_high=0.2, level=level)
        return [value.detach(), plain.detach(), gradient, hit]

    for ours, calm in zip(run(wild), run(0.0), strict=True):
        assert torch.equal(ours, calm)
        assert (ours[~scored] == 0).all()


def test_float32_stays_float32_whatever_the_advantages() -> None:
    logp, behaviour, advantage, scored = draws()
    out = clipped_surrogate(logp.float(), behaviour.float(), advantage, scored, clip_low=0.2, clip_high=0.2)
    assert out.dtype == torch.float32
    assert reinforce(logp.float(), advantage, scored).dtype == torch.float32


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.2), (0.2, -0.1)])
def test_negative_clips_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="expected distances from 1, not negative"):
        clipped_surrogate(*draws(), clip_low=low, clip_high=high)


def test_clips_of_zero_are_allowed() -> None:
    logp, behaviour, advantage, scored = draws()
    value = clipped_surrogate(logp, behaviour, advantage, scored, clip_low=0.0, clip_high=0.0)
    assert (value <= advantage[:, None] * scored + 1e-12).all()


def test_reinforce_by_hand() -> None:
    logp = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    out = reinforce(logp, torch.tensor([0.5, -2.0]), torch.tensor([[True, True], [True, False]]))
    assert out.tolist() == [[-0.5, -1.0], [6.0, 0.0]]
