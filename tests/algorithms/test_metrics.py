"""Numbers reported of an update against their formulas, and that no layout changes them."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import reduce
from operator import add

import pytest
import torch

from dllm_rl.algorithms import CJGRPO, MDPO, SFT, VRPO, Algorithm, Batch, DiffuGRPO, Scores
from dllm_rl.objectives.reduce import Report
from dllm_rl.training.backward import backward, view_groups
from tests.algorithms.cases import ALGORITHMS, ELBO, make_batch, make_scores, of_views
from tests.algorithms.test_contracts import SPLITS, _select
from tests.training.small import SmallDenoiser

ROLLOUTS = {name: algorithm for name, algorithm in ALGORITHMS.items() if algorithm.needs_behaviour}


def reports(algorithm: Algorithm, batch: Batch, scores: Scores) -> dict[str, Report]:
    return {**algorithm.loss(batch, scores).metrics, **algorithm.diagnose(batch, scores)}


def values(found: dict[str, Report]) -> dict[str, float]:
    return {name: float(report.value.detach()) for name, report in found.items()}


@pytest.mark.parametrize("algorithm", ROLLOUTS.values(), ids=ROLLOUTS)
def test_on_policy_every_weight_is_one_and_nothing_is_clipped(algorithm: Algorithm) -> None:
    batch = make_batch(algorithm, moved=False)
    scores = make_scores(batch)
    if batch.behaviour_logp is not None:  # recorded by the rollout
        scores = replace(scores, logp=batch.behaviour_logp.clone())
    if scores.plan is not None:  # made up, not what chose the rollout's positions
        batch = replace(batch, selection_logp=None)
    found = values(reports(algorithm, batch, scores))
    assert found["policy/ratio"] == found["policy/ess"] == found["policy/ess_sequence"] == 1.0
    for name in ("clipped", "clipped_low", "clipped_high", "kl_behaviour", "kl_behaviour_k3"):
        assert found[f"policy/{name}"] == 0.0


def test_what_is_said_of_token_ratios_is_their_formulas() -> None:
    algorithm = DiffuGRPO(clip_low=0.2, clip_high=0.3, corruption=ELBO, num_draws=4)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    ratios, low, high = [], 0, 0
    for view, row in enumerate(batch.views.row.tolist()):
        where = batch.views.scored[view]
        for r in (scores.logp - batch.behaviour_logp)[view][where].exp().tolist():
            ratios.append(r)
            low += r < 0.8 and float(batch.advantage[row]) < 0
            high += r > 1.3 and float(batch.advantage[row]) > 0
    n = len(ratios)
    found = values(reports(algorithm, batch, scores))
    assert low and high and low != high
    assert found["policy/clipped_low"] == pytest.approx(low / n)
    assert found["policy/clipped_high"] == pytest.approx(high / n)
    assert found["policy/clipped"] == pytest.approx((low + high) / n)
    assert found["policy/ratio"] == pytest.approx(sum(ratios) / n)
    assert found["policy/ess"] == pytest.approx(sum(ratios) ** 2 / (n * sum(r * r for r in ratios)))
    assert found["policy/kl_behaviour"] == pytest.approx(-sum(map(math.log, ratios)) / n)
    assert found["policy/kl_behaviour_k3"] == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / n)


def test_where_a_ratio_is_a_sequences_the_share_is_of_sequences() -> None:
    algorithm = DiffuGRPO(ratio_level="sequence", corruption=ELBO, num_draws=3)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    change = (batch.views.weight * (scores.logp - batch.behaviour_logp)).sum(1).view(4, 3).mean(1)
    per_token = (change / batch.sequences.scored.sum(1)).exp().tolist()
    found = values(reports(algorithm, batch, scores))
    assert found["policy/ess"] == pytest.approx(sum(per_token) ** 2 / (4 * sum(r * r for r in per_token)))


@pytest.mark.parametrize(
    ("algorithm", "draws"),
    [
        (DiffuGRPO(), 1),
        (DiffuGRPO(corruption=ELBO, num_draws=3), 3),
        (CJGRPO(), 1),
        (CJGRPO(ratio_level="step"), 1),
        (CJGRPO(ratio_level="sequence"), 1),
    ],
)
def test_a_sequences_weight_is_the_ratio_of_its_likelihoods(algorithm: Algorithm, draws: int) -> None:
    """Whatever has a ratio of its own in the loss: draws are averaged, steps of a rollout add up."""
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    weights = []
    for row in range(4):
        views = batch.views.row == row
        change = (batch.views.weight * (scores.logp - batch.behaviour_logp))[views].detach().sum() / draws
        weights.append(math.exp(float(change)))
    found = values(algorithm.diagnose(batch, scores))["policy/ess_sequence"]
    assert found == pytest.approx(sum(weights) ** 2 / (4 * sum(w * w for w in weights)))


def test_the_weight_of_mdpos_predictions_counts_every_token_once() -> None:
    """Not by the confidence that it has in the loss: a ratio of probabilities is of all tokens."""
    algorithm = MDPO()
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    weights = [math.exp(float(d.detach().sum())) for d in (scores.logp - batch.behaviour_logp) * batch.views.scored]
    found = values(algorithm.diagnose(batch, scores))["policy/ess_sequence"]
    assert found == pytest.approx(sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights)))


@pytest.mark.parametrize(
    ("algorithm", "pair"),
    [
        (SFT(num_draws=4), 1),
        (VRPO(num_draws=3), 1),
        (DiffuGRPO(corruption=ELBO, num_draws=3), 1),
        (SFT(num_draws=4, corruption={"type": "complementary"}), 2),
        (VRPO(num_draws=6, corruption={"type": "antithetic"}), 2),
    ],
)
def test_the_variance_of_the_likelihoods_estimate(algorithm: Algorithm, pair: int) -> None:
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    draws = (batch.views.weight * scores.logp).sum(1).view(4, -1, pair).mean(2).tolist()
    variances = [
        sum((x - sum(row) / len(row)) ** 2 for x in row) / (len(row) - 1) / len(row) for row in draws
    ]  # of the mean of independent draws
    found = values(algorithm.diagnose(batch, scores))
    assert found["likelihood/estimate_variance"] == pytest.approx(sum(variances) / 4)


def test_the_variance_of_a_margin_is_that_of_policy_minus_reference_on_the_same_draws() -> None:
    algorithm = VRPO(num_draws=3)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    gain = (batch.views.weight * (scores.logp - batch.reference_logp)).sum(1).view(4, 3).var(1) / 3
    found = values(algorithm.diagnose(batch, scores))
    assert found["preference/margin_variance"] == pytest.approx(float(gain.sum().detach()) / 2)
    same = replace(batch, reference_logp=scores.logp.detach())
    assert values(algorithm.diagnose(same, scores))["preference/margin_variance"] == 0.0


@pytest.mark.parametrize(
    "name", ["fixed_count", "bernoulli", "antithetic", "complementary", "balanced", "fully_hidden"]
)
def test_settings_and_corruptors_agree_on_what_is_one_estimate(name: str) -> None:
    settings = DiffuGRPO(corruption={"type": name}, num_draws=2).corruption
    assert settings.draws_per_estimate == settings.build().draws_per_estimate


@pytest.mark.parametrize(
    "algorithm", [SFT(), VRPO(num_draws=1), DiffuGRPO(), SFT(num_draws=2, corruption={"type": "complementary"})]
)
def test_one_estimate_has_no_variance_to_report(algorithm: Algorithm) -> None:
    batch = make_batch(algorithm)
    assert not [name for name in algorithm.diagnose(batch, make_scores(batch)) if "variance" in name]


@pytest.mark.parametrize("algorithm", SPLITS.values(), ids=SPLITS)
def test_reports_add_up_over_micro_batches(algorithm: Algorithm) -> None:
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    parts = []
    for rows in (torch.tensor([0, 1]), torch.tensor([2, 3])):
        view = torch.isin(batch.views.row, rows).nonzero()[:, 0]
        of_part = replace(of_views(scores, view), view=torch.arange(len(view)))
        parts.append(reports(algorithm, _select(batch, rows, view), of_part))
    together = {name: reduce(add, (part[name] for part in parts)) for name in parts[0]}
    assert values(together) == pytest.approx(values(reports(algorithm, batch, scores)))


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
@pytest.mark.parametrize("size", [1, 3])
def test_reports_do_not_depend_on_how_many_views_a_forward_takes(algorithm: Algorithm, size: int) -> None:
    batch, denoiser = make_batch(algorithm), SmallDenoiser()
    found = []
    for groups in (view_groups(len(batch.views), 100), view_groups(len(batch.views), size, len(batch.views) + 2)):
        losses = backward(
            algorithm,
            batch,
            denoiser,
            denoiser,
            groups=groups,
            scale=1.0,
            group_context=lambda last: nullcontext(),
            back_propagate=lambda objective: objective.backward(),
        )
        together: dict[str, Report] = {}
        for loss in losses:
            together.update({name: together[name] + r if name in together else r for name, r in loss.metrics.items()})
        found.append(values(together))
    assert found[1] == pytest.approx(found[0])
    assert not any(math.isnan(value) for value in found[0].values())
