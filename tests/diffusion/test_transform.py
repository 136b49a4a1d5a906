from __future__ import annotations

import math

import pytest
import torch

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.transform import Transform, guide

LOGITS = torch.tensor([[1.0, 2.0, -0.5, 3.0], [0.0, 0.0, 5.0, -1.0]], dtype=torch.float64)


def by_hand(row: list[float], temperature: float, forbidden: tuple[int, ...]) -> list[float]:
    weights = [0.0 if i in forbidden else math.exp(x / temperature) for i, x in enumerate(row)]
    return [math.log(w / sum(weights)) if w else -math.inf for w in weights]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("forbidden", [(), (3,), (0, 2)])
def test_log_probs_are_those_of_the_tempered_softmax_over_what_is_permitted(
    temperature: float, forbidden: tuple[int, ...]
) -> None:
    logp = Transform(temperature=temperature, forbidden_ids=forbidden).log_probs(LOGITS)
    for row, logits in zip(logp.tolist(), LOGITS.tolist(), strict=True):
        assert row == pytest.approx(by_hand(logits, temperature, forbidden), abs=1e-12)


def test_the_default_is_the_full_softmax_at_temperature_one() -> None:
    assert torch.equal(Transform().log_probs(LOGITS), LOGITS.log_softmax(-1))
    assert Transform() == Transform(temperature=1.0, cfg_scale=0.0, forbidden_ids=())


def test_forbidding_copies_and_leaves_the_rest_alone() -> None:
    before = LOGITS.clone()
    permitted = Transform(forbidden_ids=(1,)).permitted(LOGITS)
    assert torch.equal(LOGITS, before)
    assert (permitted[:, 1] == -math.inf).all()
    assert torch.equal(permitted[:, [0, 2, 3]], LOGITS[:, [0, 2, 3]])
    assert Transform().permitted(LOGITS) is LOGITS


def test_gradients_of_permitted_tokens_are_finite() -> None:
    logits = LOGITS.clone().requires_grad_()
    Transform(temperature=0.7, forbidden_ids=(0,)).log_probs(logits)[:, 1].sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 0] == 0).all()


def test_temperature_zero_has_no_log_probabilities() -> None:
    with pytest.raises(ValueError, match="temperature 0 draws greedily"):
        Transform(temperature=0.0).log_probs(LOGITS)


def test_a_negative_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature is -0\.1"):
        Transform(temperature=-0.1)


def test_guidance_moves_from_the_unconditional_past_the_conditional() -> None:
    c, u = LOGITS[:1], LOGITS[1:]
    assert torch.equal(guide(c, u, 0.0), u + (c - u))
    assert torch.allclose(guide(c, u, -1.0), u)
    assert torch.allclose(guide(c, u, 1.5), u + 2.5 * (c - u))
    assert guide(torch.tensor([3.0]), torch.tensor([1.0]), 1.0).tolist() == [5.0]


def test_a_spec_knows_little_by_default() -> None:
    spec = DiffusionSpec(mask_id=5)
    assert (spec.eos_ids, spec.forbidden_ids) == ((), ())
    assert (spec.logit_shift, spec.block_size, spec.noise) == (0, None, "mask")


def kept_by_hand(row: list[float], top_p: float | None, top_k: int | None) -> list[int]:
    """From the most probable token on, of equals the lowest id first, until the mass is reached or there are enough."""
    weights = [math.exp(x) for x in row]
    kept: list[int] = []
    for token in sorted(range(len(row)), key=lambda i: (-row[i], i)):
        mass = sum(weights[i] for i in kept) / sum(weights)
        if (top_p is not None and mass >= top_p) or (top_k is not None and len(kept) == top_k):
            break
        kept.append(token)
    return sorted(kept)


# Masses 1/2, 1/4, 1/8, 1/8 in another order, and a row with equals.
HALVES = torch.tensor([[2.0, 8.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("top_p", "top_k"), [(0.3, None), (0.5, None), (0.51, None), (0.9, None), (None, 1), (None, 3), (0.6, 1), (0.3, 3)]
)
def test_truncation_keeps_the_head_that_reaches_the_mass_and_is_not_too_long(top_p, top_k):  # type: ignore[no-untyped-def]
    transform = Transform(top_p=top_p, top_k=top_k)
    assert transform.truncates
    for logits, logp in zip(HALVES.tolist(), transform.log_probs(HALVES).tolist(), strict=True):
        kept = kept_by_hand(logits, top_p, top_k)
        assert [i for i, value in enumerate(logp) if value > -math.inf] == kept
        total = sum(math.exp(logits[i]) for i in kept)
        assert [logp[i] for i in kept] == pytest.approx([logits[i] - math.log(total) for i in kept])


def test_truncation_comes_after_temperature_and_forbidden_ids() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]], dtype=torch.float64)
    logp = Transform(temperature=0.5, forbidden_ids=(1,), top_p=0.85).log_probs(logits)
    assert (logp > -math.inf).tolist() == [[False, False, False, True]]  # exp(4) of exp(4) + exp(2) + 1 is 0.867
    assert (Transform(forbidden_ids=(1,), top_p=0.85).log_probs(logits) > -math.inf).tolist() == [
        [False, False, True, True]
    ]


def test_of_many_equal_tokens_the_lowest_ids_are_kept() -> None:
    logp = Transform(top_k=10).log_probs(torch.zeros(3, 5000))
    assert (logp > -math.inf).nonzero()[:, 1].tolist() == list(range(10)) * 3


def test_all_of_the_mass_is_every_token_whatever_rounding_does() -> None:
    logits = 3 * torch.randn(4, 50_000, generator=torch.Generator().manual_seed(0))
    assert (logits.softmax(-1).sort(descending=True).values.cumsum(-1) > 1).any(), "rounding would cut a tail"
    assert torch.equal(Transform(top_p=1.0).log_probs(logits), logits.log_softmax(-1))
    assert Transform(top_p=1.0).truncates and not Transform().truncates


def test_tokens_kept_have_gradients_among_themselves_only() -> None:
    logits = LOGITS.clone().requires_grad_()
    Transform(top_k=2).log_probs(logits)[:1, 3].sum().backward()
    assert logits.grad is not None
    assert (logits.grad[0] != 0).tolist() == [False, True, False, True]


@pytest.mark.parametrize("top_p", [0.0, -0.5, 1.01])
def test_a_mass_that_is_none_is_refused(top_p: float) -> None:
    with pytest.raises(ValueError, match=f"top_p is {top_p}; expected a number above 0, at most 1"):
        Transform(top_p=top_p)


def test_fewer_than_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="top_k is 0; expected at least 1"):
        Transform(top_k=0)
    assert Transform(top_k=1, top_p=1.0) == Transform(1.0, 0.0, (), 1.0, 1)


def test_a_strength_per_row_is_rounded_once_as_a_number_is() -> None:
    conditional, unconditional = LOGITS.float(), LOGITS.flip(0).float()
    scales = [0.3, 1.7]
    found = guide(conditional, unconditional, torch.tensor(scales, dtype=torch.float64)[:, None])
    assert found.dtype == torch.float32
    for row, scale in enumerate(scales):
        assert torch.equal(found[row], guide(conditional[row], unconditional[row], scale))
