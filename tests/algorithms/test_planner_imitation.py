"""A planner that learns from a teacher sampler: the published sums, and a table that comes to choose as its teacher."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from dllm_rl.algorithms import PlannerImitation, Scores
from dllm_rl.algorithms.base import Material
from dllm_rl.diffusion.replay import replay
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.generate import generate
from dllm_rl.training.backward import score_group
from tests.algorithms.cases import MASK, make_batch, make_material, make_scores
from tests.diffusion.tabular import Planned

TEACHER = {"sampler": "threshold", "threshold": 0.6, "order": "max", "gen_length": 4, "temperature": 1.0}


def test_the_loss_is_minus_the_log_probability_of_the_teachers_choice() -> None:
    algorithm = PlannerImitation()
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    expected, agreements = torch.zeros((), dtype=torch.float64), 0
    for view in range(len(batch.views)):
        places = batch.views.open[view].nonzero()[:, 0].tolist()
        taken = batch.views.scored[view].nonzero()[:, 0].tolist()
        plan = scores.plan[view]
        first = max(places, key=lambda i, plan=plan: float(plan[i].detach()))
        counted = [i for i in places if taken != [first] or i != first]
        expected = expected - sum(torch.sigmoid(plan[i] if i in taken else -plan[i]).log() for i in counted)
        agreements += ([i for i in places if plan[i] > 0] or [first]) == taken
    loss = algorithm.loss(batch, scores)
    torch.testing.assert_close(loss.total, expected)
    assert algorithm.count(batch) == len(batch.views)
    assert loss.metrics["planner/nll"].value == pytest.approx(float(expected.detach()) / len(batch.views))
    assert 0 < agreements < len(batch.views)
    assert loss.metrics["planner/agreement"].value == agreements / len(batch.views)


def test_the_published_loss_is_cross_entropy_with_the_written_weighed_up() -> None:
    algorithm = PlannerImitation(objective="bce")
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    opened = batch.views.open
    written = batch.views.scored[opened].double()
    expected = binary_cross_entropy_with_logits(
        scores.plan[opened], written, pos_weight=(1 - written).sum() / written.sum()
    )
    torch.testing.assert_close(algorithm.loss(batch, scores).total / algorithm.count(batch), expected)


@pytest.mark.parametrize("objective", ["likelihood", "bce"])
def test_a_planner_sure_of_the_teachers_choice_loses_nothing(objective: str) -> None:
    algorithm = PlannerImitation(objective=objective)
    batch = make_batch(algorithm)
    plan = torch.where(batch.views.scored, 40.0, -40.0).double() * batch.views.open
    loss = algorithm.loss(batch, Scores(torch.zeros_like(plan), torch.arange(len(plan)), plan))
    assert float(loss.total) < 1e-12
    assert loss.metrics["planner/agreement"].value == 1.0


def test_nothing_but_the_head_learns_and_no_reward_is_needed() -> None:
    algorithm = PlannerImitation(updates_per_rollout=3)
    assert (algorithm.learns, algorithm.head, algorithm.needs_reward, algorithm.num_iterations) == (
        "head",
        "planner",
        False,
        3,
    )


def test_a_teacher_that_hides_again_what_it_wrote_is_refused() -> None:
    rollout = generate(Planned(longest=6), [[1, 2]], sampler="rcr", gen_length=4, steps=3, temperature=1.0)
    material = Material(rollout.sequences(), rollout.keys, trajectory=rollout)
    with pytest.raises(RecipeError, match="planner_imitation: the teacher hides again what it wrote"):
        PlannerImitation().prepare(material, rollout.keys, MASK)


def test_the_views_are_the_teachers_steps_with_what_it_could_choose_from() -> None:
    algorithm = PlannerImitation()
    material = make_material(algorithm)
    assert material.trajectory is not None
    found = replay(material.trajectory, material.sequences)
    batch = algorithm.prepare(material, material.keys, MASK)
    assert torch.equal(batch.views.open, found.open) and torch.equal(batch.views.scored, found.views.scored)
    ended = replace(material.sequences, scored=material.sequences.scored & (torch.arange(6) < 3))
    assert torch.equal(algorithm.scope(ended).attend, ended.attend)


@pytest.mark.parametrize("objective", ["likelihood", "bce"])
def test_a_table_comes_to_choose_as_its_teacher(objective: str) -> None:
    """The teacher is blind to its draws, so its choice is a function of the canvas, and can be learned for certain."""
    model = Planned(seed=1, longest=5)
    planner = model.planner.tables[5].requires_grad_()
    taught = generate(model, [[1], [2]] * 100, **TEACHER)
    algorithm = PlannerImitation(objective=objective)
    material = Material(taught.sequences(), taught.keys, trajectory=taught)
    batch = algorithm.prepare(material, taught.keys, model.spec.mask_id)
    optimizer = torch.optim.Adam([planner], lr=0.3)
    seen = []
    for _ in range(60):
        loss = algorithm.loss(batch, score_group(model, batch, torch.arange(len(batch.views))))
        seen.append((float(loss.metrics["planner/agreement"].value), float(loss.metrics["planner/nll"].value)))
        optimizer.zero_grad()
        (loss.total / algorithm.count(batch)).backward()
        optimizer.step()
    (agreement_before, nll_before), (agreement, nll) = seen[0], seen[-1]
    assert agreement_before < 0.6 and nll_before > 1.0
    assert agreement == 1.0 and nll < 0.05
    follows = generate(model, [[1], [2]] * 100, sampler="planner", gen_length=4, temperature=1.0, seed=5)
    slow = generate(model, [[1], [2]] * 100, sampler="rl", gen_length=4, temperature=1.0)
    assert abs(sum(follows.nfe) - sum(taught.nfe)) < 0.05 * sum(taught.nfe) < 0.05 * sum(slow.nfe)
