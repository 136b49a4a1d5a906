"""VRPO against the paper's formula, its own identities and published numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dllm_rl.algorithms import VRPO, Batch, Scores
from tests.algorithms.cases import make_batch, make_scores


def _elbos(batch: Batch, logp: torch.Tensor, draws: int) -> torch.Tensor:
    return (batch.views.weight * logp).sum(-1).view(-1, draws).mean(-1)


def test_policy_equal_to_reference_gives_log_two_and_half_the_gradient_of_the_margin() -> None:
    algorithm = VRPO(num_draws=3, beta=0.7)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    batch = replace(batch, reference_logp=scores.logp.detach().clone())
    loss = algorithm.loss(batch, scores)
    assert loss.total.item() == pytest.approx(2 * math.log(2), abs=1e-12)
    margin = _elbos(batch, scores.logp, 3)
    expected = torch.autograd.grad(-0.5 * 0.7 * (margin[0] - margin[1] + margin[2] - margin[3]), scores.logp)[0]
    torch.testing.assert_close(torch.autograd.grad(loss.total, scores.logp)[0], expected)


def test_loss_is_the_papers_formula() -> None:
    algorithm = VRPO(num_draws=3, beta=0.7, sft_coefficient=0.2)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    policy, reference = _elbos(batch, scores.logp, 3), _elbos(batch, batch.reference_logp, 3)
    s = 0.7 * (policy - reference)
    expected = sum(-torch.log(torch.sigmoid(s[2 * i] - s[2 * i + 1])) for i in range(2))
    lengths = batch.sequences.scored.sum(-1)
    expected = expected + 0.2 * (-policy[0] / lengths[0] - policy[2] / lengths[2])
    torch.testing.assert_close(algorithm.loss(batch, scores).total, expected)


def test_metrics_say_which_text_is_preferred() -> None:
    algorithm = VRPO(num_draws=3)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    metrics = algorithm.loss(batch, scores).metrics
    policy, reference = _elbos(batch, scores.logp, 3), _elbos(batch, batch.reference_logp, 3)
    gain = policy - reference
    assert metrics["preference/accuracy"].value == ((gain[0::2] > gain[1::2]).double().mean())
    torch.testing.assert_close(metrics["preference/margin"].value, (gain[0::2] - gain[1::2]).mean().detach())
    torch.testing.assert_close(metrics["preference/chosen_gain"].value, gain[0::2].mean().detach())
    torch.testing.assert_close(metrics["preference/rejected_gain"].value, gain[1::2].mean().detach())


def test_published_losses_and_gradients(shared: Path) -> None:
    for case in json.loads((shared / "golden/vrpo.json").read_text())["loss_cases"]:
        algorithm = VRPO(num_draws=1, beta=case["beta"])
        batch, scores = _one_view_per_text(algorithm, case)
        loss = algorithm.loss(batch, scores).total / algorithm.count(batch)
        assert loss.item() == pytest.approx(case["formula"]["loss"], rel=1e-6)
        gradient = torch.autograd.grad(loss, scores.logp)[0][:, -1]
        wanted = case["formula"]
        torch.testing.assert_close(gradient[0::2], torch.tensor(wanted["grad_theta_w"], dtype=torch.float64))
        torch.testing.assert_close(gradient[1::2], torch.tensor(wanted["grad_theta_l"], dtype=torch.float64))


def _one_view_per_text(algorithm: VRPO, case: dict) -> tuple[Batch, Scores]:  # type: ignore[type-arg]
    """One-token completions, so that a single view's score is the ELBO itself."""
    from dllm_rl.diffusion.sequences import sequences_from_ids
    from dllm_rl.rng import sample_keys

    pairs = len(case["elbo_theta_w"])
    sequences = sequences_from_ids([[1]] * (2 * pairs), [[2]] * (2 * pairs), pad_id=0)
    views = algorithm.views(sequences, sample_keys(0, torch.arange(2 * pairs)), 6)
    interleave = lambda w, r: torch.tensor([x for pair in zip(w, r, strict=True) for x in pair], dtype=torch.float64)  # noqa: E731
    place = lambda values: torch.stack([torch.zeros_like(values), values], dim=-1)  # noqa: E731
    policy = place(interleave(case["elbo_theta_w"], case["elbo_theta_l"])).requires_grad_()
    reference = place(interleave(case["elbo_ref_w"], case["elbo_ref_l"]))
    return Batch(sequences, views, reference_logp=reference), Scores(policy, torch.arange(2 * pairs))
