"""What every algorithm promises, whatever it computes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dllm_rl.algorithms import Algorithm, Scores
from tests.algorithms.cases import ALGORITHMS, make_batch, make_scores, of_views

EACH = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
SUMS = {name: algorithm for name, algorithm in ALGORITHMS.items() if algorithm.is_sum_over_views}
# The released codes' weights depend on the micro-batches; that is their flaw.
RELEASED = ("diffu_grpo_released", "planner_imitation_published")
SPLITS = {name: algorithm for name, algorithm in ALGORITHMS.items() if name not in RELEASED}


@pytest.mark.parametrize("algorithm", SUMS.values(), ids=SUMS)
def test_a_loss_that_says_it_is_a_sum_over_views_is_one(algorithm: Algorithm) -> None:
    batch = make_batch(algorithm)
    whole = make_scores(batch)
    total = algorithm.loss(batch, whole).total
    for size in (1, 2, 3):
        parts = [algorithm.loss(batch, of_views(whole, v)).total for v in whole.view.split(size)]
        torch.testing.assert_close(sum(parts), total)


@EACH
def test_a_loss_is_pure_and_its_gradient_stays_where_views_are_scored(algorithm: Algorithm) -> None:
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    first = algorithm.loss(batch, scores)
    second = algorithm.loss(batch, scores)
    assert torch.equal(first.total, second.total)
    asked = {"logp": batch.views.scored, "plan": batch.views.open}
    for name, where in asked.items():
        numbers = getattr(scores, name)
        if numbers is None or (name == "logp" and algorithm.learns == "head"):
            continue
        (gradient,) = torch.autograd.grad(first.total, numbers, retain_graph=True)
        assert torch.isfinite(gradient).all()
        assert (gradient[~where] == 0).all()
        assert gradient[where].abs().sum() > 0


@EACH
def test_the_gradient_of_a_loss_is_its_slope(algorithm: Algorithm) -> None:
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    plan = () if scores.plan is None else (scores.plan,)
    assert torch.autograd.gradcheck(
        lambda logp, *plan: algorithm.loss(batch, Scores(logp, scores.view, *plan)).total,
        (scores.logp, *plan),
        eps=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("algorithm", SPLITS.values(), ids=SPLITS)
def test_the_count_and_the_loss_add_up_over_micro_batches(algorithm: Algorithm) -> None:
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    totals, counts = [], []
    for rows in (torch.tensor([0, 1]), torch.tensor([2, 3])):
        view = torch.isin(batch.views.row, rows).nonzero()[:, 0]
        part = _select(batch, rows, view)
        totals.append(algorithm.loss(part, replace(of_views(scores, view), view=torch.arange(len(view)))).total)
        counts.append(algorithm.count(part))
    torch.testing.assert_close(sum(totals), algorithm.loss(batch, scores).total)
    assert math.isclose(sum(counts), algorithm.count(batch))


def _select(batch, rows, view):  # type: ignore[no-untyped-def]
    views = batch.views.select(view)
    pick = lambda part, index: None if part is None else part[index]  # noqa: E731
    return replace(
        batch,
        sequences=batch.sequences.select(rows),
        views=replace(views, row=views.row - rows[0]),
        advantage=pick(batch.advantage, rows),
        behaviour_logp=pick(batch.behaviour_logp, view),
        reference_logp=pick(batch.reference_logp, view),
        selection_logp=pick(batch.selection_logp, view),
    )


@EACH
def test_settings_survive_a_round_trip(algorithm: Algorithm) -> None:
    assert type(algorithm).model_validate_json(algorithm.model_dump_json()) == algorithm
    assert algorithm.citation.startswith("@article{")
