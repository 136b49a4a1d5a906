"""diffu-GRPO against the paper, REINFORCE, and the released code's numbers with its flaws on and off."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from dllm_rl.algorithms import Batch, DiffuGRPO, Scores
from dllm_rl.diffusion.views import Sequences, Views
from tests.algorithms.cases import ELBO, make_batch, make_scores

COUPLED = {"type": "complementary"}
LEVELS = pytest.mark.parametrize("level", ["token", "sequence"])


@LEVELS
@pytest.mark.parametrize("corruption,draws", [({"type": "fully_hidden"}, 1), (ELBO, 3), (COUPLED, 4)])
def test_on_policy_gradient_is_reinforce(level: str, corruption: dict, draws: int) -> None:  # type: ignore[type-arg]
    algorithm = DiffuGRPO(ratio_level=level, corruption=corruption, num_draws=draws, kl_coefficient=0)
    batch = make_batch(algorithm, moved=False)
    scores = make_scores(batch)
    loss = algorithm.loss(batch, scores)
    weighted = (batch.views.weight * scores.logp).sum(-1).view(4, draws).mean(-1)
    lengths = batch.sequences.scored.sum(-1)
    reinforce = -(batch.advantage * weighted / lengths).sum()
    torch.testing.assert_close(
        torch.autograd.grad(loss.total, scores.logp)[0], torch.autograd.grad(reinforce, scores.logp)[0]
    )
    assert loss.metrics["policy/ratio"].value == 1.0
    assert loss.metrics["policy/clipped"].value == 0.0


def test_scores_of_the_behaviour_itself_equal_no_scores() -> None:
    algorithm = DiffuGRPO()
    batch = make_batch(algorithm, moved=False)
    scores = make_scores(batch)
    explicit = replace(batch, behaviour_logp=scores.logp.detach().clone())
    assert torch.equal(algorithm.loss(batch, scores).total, algorithm.loss(explicit, scores).total)


def test_token_level_loss_is_equation_four() -> None:
    algorithm = DiffuGRPO(clip_low=0.2, clip_high=0.3, kl_coefficient=0.04)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        where = batch.sequences.scored[i]
        lp, old, ref = (x[i][where] for x in (scores.logp, batch.behaviour_logp, batch.reference_logp))
        rho, a = torch.exp(lp - old), batch.advantage[i]
        pg = torch.minimum(rho * a, torch.clamp(rho, 0.8, 1.3) * a)
        k3 = torch.exp(ref - lp) - (ref - lp) - 1
        expected = expected - (pg - 0.04 * k3).mean()
    torch.testing.assert_close(algorithm.loss(batch, scores).total, expected)
    assert algorithm.count(batch) == 4


def test_sequence_level_ratio_is_the_geometric_mean() -> None:
    algorithm = DiffuGRPO(ratio_level="sequence", clip_low=0.2, clip_high=0.3, kl_coefficient=0)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        where = batch.sequences.scored[i]
        rho = torch.exp((scores.logp[i][where] - batch.behaviour_logp[i][where]).mean())
        a = batch.advantage[i]
        expected = expected - torch.minimum(rho * a, torch.clamp(rho, 0.8, 1.3) * a)
    torch.testing.assert_close(algorithm.loss(batch, scores).total, expected)


@pytest.mark.parametrize("corruption", [ELBO, COUPLED])
def test_on_elbo_views_it_is_the_difference_of_two_elbos_on_the_same_draws_per_token(corruption: dict) -> None:  # type: ignore[type-arg]
    way = {"corruption": corruption, "num_draws": 4, "kl_coefficient": 0, "clip_low": 0.2, "clip_high": 0.3}
    algorithm = DiffuGRPO(ratio_level="sequence", reduction="token", **way)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    expected = torch.zeros((), dtype=torch.float64)
    for i, n in enumerate(batch.sequences.scored.sum(1).tolist()):
        new, old = (
            sum((batch.views.weight[v] * logp[v]).sum() for v in range(4 * i, 4 * i + 4)) / 4
            for logp in (scores.logp, batch.behaviour_logp)
        )
        rho, a = torch.exp((new - old) / n), batch.advantage[i]
        expected = expected - n * torch.minimum(rho * a, torch.clamp(rho, 0.8, 1.3) * a)
    loss = algorithm.loss(batch, scores).total
    torch.testing.assert_close(loss, expected)
    (found,), (wanted,) = (torch.autograd.grad(x, scores.logp) for x in (loss, expected))
    torch.testing.assert_close(found, wanted)


def test_reductions_differ_as_documented() -> None:
    batch = make_batch(DiffuGRPO())
    scores = make_scores(batch)
    tokens = batch.sequences.scored.sum()
    by_token = DiffuGRPO(reduction="token")
    local = DiffuGRPO(reduction="local_token")
    assert by_token.count(batch) == tokens and local.count(batch) == 1
    torch.testing.assert_close(by_token.loss(batch, scores).total / tokens, local.loss(batch, scores).total)
    assert not torch.isclose(by_token.loss(batch, scores).total / tokens, DiffuGRPO().loss(batch, scores).total / 4)


def test_released_mask_schedule_repeats_masks_and_the_default_does_not() -> None:
    """With accumulation 2 and mu 12 the released index makes each micro-batch cycle through 6 of 12 masks."""
    for mu, accumulation in ((12, 2), (8, 2), (4, 3)):
        for micro_batch in range(accumulation):
            indices = [
                DiffuGRPO(updates_per_rollout=mu, mask_schedule=schedule).iteration_index(n, micro_batch, accumulation)
                for schedule in ("released", "distinct")
                for n in range(mu)
            ]
            assert len(set(indices[:mu])) == mu // math.gcd(mu, accumulation)
            assert sorted(indices[mu:]) == list(range(mu))
    released = DiffuGRPO(updates_per_rollout=12, mask_schedule="released")
    assert [released.iteration_index(n, 0, 2) for n in range(12)] == [1, 3, 5, 7, 9, 11] * 2


def test_identical_views_are_refused() -> None:
    with pytest.raises(ValidationError, match="num_draws is 2, but fully hidden views"):
        DiffuGRPO(num_draws=2, corruption={"type": "fully_hidden", "prompt_noise": 0.0})


def test_the_prompt_and_the_rest_of_the_canvas_are_shown_as_the_corruption_needs() -> None:
    scored = torch.tensor([[False, True, True, False]])
    sequences = Sequences(
        torch.tensor([[1, 2, 0, 0]]),
        torch.tensor([[True, True, True, True]]),
        torch.tensor([[False, True, True, True]]),
        scored,
    )
    assert DiffuGRPO().scope(sequences).attend.tolist() == [[True, True, True, True]]
    assert DiffuGRPO(corruption=ELBO).scope(sequences).attend.tolist() == [[True, True, True, False]]


def test_released_numbers(shared: Path) -> None:
    """Loss, KL and advantages of the released code from its own per-token log-probabilities."""
    golden = json.loads((shared / "golden/diffu_grpo.json").read_text())
    tokens = torch.tensor(golden["completion_ids"])
    for case in golden["cases"]:
        hyper = case["hyper"]
        algorithm = DiffuGRPO(
            clip_low=hyper["epsilon"],
            clip_high=hyper["epsilon"],
            kl_coefficient=hyper["beta"],
            reduction="local_token",
            updates_per_rollout=hyper["num_iterations"],
        )
        scored = torch.tensor(case["completion_mask"]).bool()
        rewards = torch.tensor(case["rewards"], dtype=torch.float64).view(-1, hyper["num_generations"])
        advantage = algorithm.advantages(rewards).flatten()
        torch.testing.assert_close(advantage, torch.tensor(case["advantages"], dtype=torch.float64), atol=1e-6, rtol=0)
        everything = torch.ones_like(scored)
        sequences = Sequences(tokens, everything, everything, scored)
        views = Views(tokens, scored, scored.double(), torch.arange(len(tokens)))
        for iteration in case["iterations"]:
            loss = algorithm.loss(*_recorded(iteration, sequences, views, advantage))
            assert loss.total.item() == pytest.approx(iteration["loss"], rel=1e-4, abs=1e-6)
            if hyper["beta"]:
                divergence = loss.metrics["policy/kl_reference"].value.item()
                assert divergence == pytest.approx(iteration["kl"], rel=1e-4, abs=1e-6)


def _recorded(
    iteration: dict,
    sequences: Sequences,
    views: Views,
    advantage: torch.Tensor,  # type: ignore[type-arg]
) -> tuple[Batch, Scores]:
    def numbers(name: str) -> torch.Tensor | None:
        return torch.tensor(iteration[name], dtype=torch.float64) * views.scored if name in iteration else None

    batch = Batch(sequences, views, advantage, numbers("old_per_token_logps"), numbers("ref_per_token_logps"))
    policy = numbers("per_token_logps")
    assert policy is not None
    return batch, Scores(policy, torch.arange(len(views)))
