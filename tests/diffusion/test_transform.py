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
