"""MDPO against the released code's sums, and its expected gradient, enumerated, against that of its own objective."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from dllm_rl.algorithms import MDPO, Scores
from dllm_rl.algorithms.base import Material, StepCredit
from dllm_rl.diffusion.replay import replay
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import RecipeError
from dllm_rl.objectives.steps import step_advantages
from dllm_rl.samplers.generate import generate
from dllm_rl.training.backward import score_group
from tests.algorithms.cases import MASK, make_batch, make_material, make_scores
from tests.samplers.oracle import Table
from tests.training.small import SmallDenoiser

REWARD = torch.tensor([[[0.0, 1.0, 0.5, 0.25], [0.0, 0.5, 1.0, 0.25]]])


@pytest.mark.parametrize("confidence", [True, False])
@pytest.mark.parametrize("level", [True, False])
def test_the_loss_is_the_released_codes_sum_step_by_step(confidence: bool, level: bool) -> None:
    algorithm = MDPO(kept_steps=2, clip_high=0.3, confidence_weight=confidence, level_weight=level)
    drawn = algorithm.prepare(make_material(algorithm), torch.arange(2), MASK)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    expected = torch.zeros((), dtype=torch.float64)
    for view in range(4):
        m = batch.views.canvas[view, -4:] == MASK
        lp, old, ref = (x[view, -4:] for x in (scores.logp, batch.behaviour_logp, batch.reference_logp))
        a = batch.advantage[view]
        lam = 4 / m.sum() if level else 1.0
        w = drawn.behaviour_logp[view, -4:].exp() if confidence else torch.ones(4)
        rho = torch.exp(lp - old)
        pg = -torch.minimum(rho * a, torch.clamp(rho, 0.8, 1.3) * a) * lam
        kl = 0.5 * (ref - lp) ** 2
        expected = expected + (m * w * (pg + 0.02 * kl)).sum() / m.sum()
    torch.testing.assert_close(algorithm.loss(batch, scores).total, expected)
    assert algorithm.count(batch) == 4


def test_what_is_scored_is_the_whole_prediction_of_each_kept_step() -> None:
    algorithm = MDPO(kept_steps=2)
    material = make_material(algorithm)
    batch = algorithm.prepare(material, material.keys, MASK)
    out, advantage = material.trajectory, step_advantages(REWARD, torch.tensor([[4, 4]]), scale="group_std")[0]
    expected = [(row, step) for row in range(2) for step in (1, 2)]  # the first step's values are equal
    assert batch.views.row.tolist() == [0, 1, 2, 3] and batch.transform == out.transform
    for view, (row, step) in enumerate(expected):
        assert torch.equal(batch.views.canvas[view], out.canvas(step)[row])
        assert torch.equal(batch.views.tokens[view, -4:], out.predictions.tokens[row, step])
        hidden = out.completion_canvas(step)[row] == MASK
        assert torch.equal(batch.views.scored[view, -4:], hidden) and not batch.views.scored[view, :-4].any()
        assert torch.equal(batch.behaviour_logp[view, -4:], out.predictions.logq[row, step])
        assert batch.advantage[view] == advantage[row, step]
    torch.testing.assert_close(batch.views.weight, batch.behaviour_logp.exp() * batch.views.scored)
    assert algorithm.scope(material.sequences) is material.sequences


def test_tokens_after_the_end_of_text_are_part_of_the_prediction() -> None:
    algorithm = MDPO(kept_steps=2)
    material = make_material(algorithm)
    ended = replace(material.sequences, scored=torch.zeros_like(material.sequences.scored))
    batch = algorithm.prepare(replace(material, sequences=ended), material.keys, MASK)
    assert torch.equal(batch.views.scored, batch.views.canvas == MASK)


def test_all_steps_kept_is_training_on_all_steps() -> None:
    few, many, every = MDPO(kept_steps=2), MDPO(kept_steps=4), MDPO(kept_steps=None)
    rewards, taken = REWARD, torch.tensor([[4, 4]])
    assert few.step_credit(rewards, taken).kept.sum() == 4
    credit = every.step_credit(rewards, taken)
    assert credit.kept.all() and torch.equal(many.step_credit(rewards, taken).kept, credit.kept)
    material = make_material(few)
    batch = every.prepare(replace(material, credit=credit), material.keys, MASK)
    assert len(batch.views) == 8
    scores = make_scores(batch)
    per_view = torch.stack([every.loss(batch, Scores(scores.logp[[v]], torch.tensor([v]))).total for v in range(8)])
    batch_of_few = few.prepare(material, material.keys, MASK)
    kept = credit_index(material.credit)
    few_scores = Scores(scores.logp[kept], torch.arange(4))
    torch.testing.assert_close(few.loss(batch_of_few, few_scores).total, per_view[kept].sum())


def credit_index(credit: StepCredit) -> Tensor:
    """Where the kept steps are among all steps, side by side."""
    return credit.kept.flatten().nonzero()[:, 0]


def test_each_group_keeps_its_own_steps_and_only_those_a_rollout_took() -> None:
    reward = torch.tensor([[[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]], [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]])
    credit = MDPO(kept_steps=1, scale="none").step_credit(reward, torch.tensor([[3, 3], [3, 1]]))
    assert credit.kept.tolist() == [[False, True, False]] * 2 + [[True, False, False]] * 2
    late = MDPO(kept_steps=None).step_credit(reward, torch.tensor([[3, 3], [3, 1]]))
    assert late.kept.tolist() == [[True] * 3] * 3 + [[True, False, False]]


def test_on_policy_ratios_are_one_and_the_gradient_is_reinforce() -> None:
    algorithm = MDPO(kept_steps=2, kl_coefficient=0)
    batch = make_batch(algorithm, moved=False)
    logp = score_group(SmallDenoiser(seed=2), batch, torch.arange(4)).logp.detach().requires_grad_()
    torch.testing.assert_close(logp.detach(), batch.behaviour_logp, rtol=0, atol=1e-12)
    exact = batch.behaviour_logp.clone().requires_grad_()
    loss = algorithm.loss(batch, Scores(exact, torch.arange(4)))
    (gradient,) = torch.autograd.grad(loss.total, exact)
    hidden = batch.views.scored.sum(1, keepdim=True)
    weight = batch.behaviour_logp.exp() * 4 / hidden**2 * batch.advantage[:, None] * batch.views.scored
    torch.testing.assert_close(gradient, -weight)
    assert loss.metrics["policy/ratio"].value == 1.0 and loss.metrics["policy/clipped"].value == 0.0


def test_steps_that_only_revised_what_stood_are_not_learned_from() -> None:
    algorithm = MDPO(kept_steps=None)
    model = Table(seed=2, longest=6)
    way = {"sampler": "t2t", "threshold": 0.4, "edit": 0.3, "temperature": 1.3, "record_predictions": True}
    out = generate(model, [[1, 2], [0]], gen_length=4, **way)
    steps = torch.tensor([out.nfe])
    credit = algorithm.step_credit(torch.rand(1, 2, out.num_steps, dtype=torch.float64), steps)
    batch = algorithm.prepare(Material(out.sequences(), out.keys, trajectory=out, credit=credit), out.keys, 3)
    assert len(batch.views) == len(replay(out, out.sequences()).step) < int(steps.sum())
    assert torch.isfinite(algorithm.loss(replace(batch, reference_logp=None), make_scores(batch)).total)


@pytest.mark.parametrize(("change", "message"), [({"temperature": 0.0}, "greedy"), ({"top_k": 2}, "top_p or top_k")])
def test_rollouts_without_a_likelihood_to_learn_from_are_refused(change: dict[str, Any], message: str) -> None:
    algorithm = MDPO()
    material = make_material(algorithm)
    drawn = replace(material.trajectory, transform=replace(material.trajectory.transform, **change))
    with pytest.raises(RecipeError, match=f"mdpo: the rollouts were .*{message}"):
        algorithm.prepare(replace(material, trajectory=drawn), material.keys, MASK)


@dataclass(frozen=True, eq=False)
class Toy:
    """Every rollout of two tokens after the prompt [1], in one step or two, with its probability and step rewards."""

    model: Table
    table: Tensor
    rollouts: Trajectory
    chance: Tensor
    reward: Tensor
    """[rollouts, steps]"""

    @property
    def steps(self) -> int:
        return self.reward.shape[1]


def worth(text: list[int]) -> float:
    return float(sum(text) % 4 + 2 * (text[0] == text[1]))


@cache
def toy(steps: int) -> Toy:
    model = Table(seed=3, longest=3)
    model.tables[3] *= 0.3  # so that every rollout turns up
    table = model.tables[3].requires_grad_()
    way = {"sampler": "rcr", "gen_length": 2, "steps": steps, "temperature": 0.7}
    many = generate(model, [[1]] * 1000, record_predictions=True, **way)
    first: dict[str, int] = {}
    for row, texts in enumerate(many.predictions.tokens.tolist()):
        first.setdefault(str((texts, many.completion_canvas(1)[row].tolist())), row)
    rollouts = many.select(list(first.values()))
    reward = torch.tensor(
        [[worth(text) for text in texts] for texts in rollouts.predictions.tokens.tolist()], dtype=torch.float64
    )
    return Toy(model, table, rollouts, rollouts.behaviour_logp.exp(), reward)


def probability_of_tokens(toy: Toy, step: int) -> Tensor:
    """[rollouts, 2]: of each token that the step predicted, 1 where none; written out from the table."""
    columns = []
    canvases = toy.rollouts.completion_canvas(step)
    for canvas, tokens in zip(canvases.tolist(), toy.rollouts.predictions.tokens[:, step].tolist(), strict=True):
        logits = toy.table[1 + 4 * canvas[0] + 16 * canvas[1], 1:, :3] / 0.7
        p = logits.softmax(-1)
        hidden = [position for position in range(2) if canvas[position] == 3]
        columns.append([p[k, tokens[k]] if k in hidden else torch.ones((), dtype=torch.float64) for k in range(2)])
    return torch.stack([torch.stack(row) for row in columns])


def objective(toy: Toy, *, confidence: bool, level: bool, scale: str, every_group: list[tuple[int, int]]) -> Tensor:
    """The docstring's, as the expectation over all groups of two, the ratio's denominator held fixed. All steps."""
    total = torch.zeros((), dtype=torch.float64)
    left, right = torch.tensor(every_group).T
    both = toy.chance[left] * toy.chance[right]
    r = toy.reward
    values = []
    for i in range(toy.steps):
        before = r[:, i - 1] if i else torch.zeros_like(r[:, 0])
        later = r[:, i + 1 :].mean(1) if i < toy.steps - 1 else r[:, i]
        values.append(r[:, i] - before + later)
    for i, a in enumerate(values):
        p = probability_of_tokens(toy, i)
        hidden = (toy.rollouts.completion_canvas(i) == 3).double()
        m = hidden.sum(1)
        weight = hidden * (p.detach() if confidence else 1) / m[:, None] * (2 / m[:, None] if level else 1)
        surrogate = (weight * p / p.detach()).sum(1)
        for mine, other in ((left, right), (right, left)):
            advantage = (a[mine] - a[other]) / 2
            if scale == "group_std":
                deviation = (a[mine] - a[other]).abs() / 2**0.5
                advantage = torch.where(deviation > 1e-9, advantage / deviation.clamp(min=1e-9), 0.0)
            total = total + (both * advantage * surrogate[mine]).sum() / (2 * toy.steps)
    return total


def gradient_of_all_steps(confidence: bool, level: bool, scale: str) -> Tensor:
    options = {"confidence_weight": confidence, "level_weight": level, "scale": scale}
    return expected_gradient(toy(2), MDPO(kept_steps=None, kl_coefficient=0, **options))


@cache
def expected_gradient(toy: Toy, algorithm: MDPO) -> Tensor:
    """Of minus the mean loss over all groups of two. On policy a loss is linear in advantages: they carry chances."""
    every = list(product(range(len(toy.chance)), repeat=2))
    rows = torch.tensor(every).flatten()
    groups = toy.rollouts.select(rows.tolist())
    reward = toy.reward[rows].view(len(every), 2, toy.steps)
    credit = algorithm.step_credit(reward, torch.full((len(every), 2), toy.steps))
    both = toy.chance[rows].view(-1, 2).prod(1).repeat_interleave(2)
    weighted = replace(credit, advantage=credit.advantage * both[:, None])
    batch = algorithm.prepare(Material(groups.sequences(), groups.keys, trajectory=groups, credit=weighted), rows, 3)
    loss = algorithm.loss(batch, score_group(toy.model, batch, torch.arange(len(batch.views)))).total
    return -torch.autograd.grad(loss, toy.table)[0] * len(every) / algorithm.count(batch)


@pytest.mark.parametrize("scale", ["none", "group_std"])
@pytest.mark.parametrize("level", [True, False])
@pytest.mark.parametrize("confidence", [True, False])
def test_the_expected_gradient_is_that_of_the_objective(confidence: bool, level: bool, scale: str) -> None:
    case = toy(2)
    assert float(case.chance.sum()) == pytest.approx(1.0, abs=1e-12)
    found = gradient_of_all_steps(confidence, level, scale)
    every = list(product(range(len(case.chance)), repeat=2))
    stated = objective(case, confidence=confidence, level=level, scale=scale, every_group=every)
    (expected,) = torch.autograd.grad(stated, case.table)
    assert float(expected.norm()) > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def reward_gradient(case: Toy) -> Tensor:
    """Of the expected reward of the final completion: writing everything and hiding again by confidence is a function
    of the draws, so the rollout's probability is that of all its predictions."""
    probability = torch.stack([probability_of_tokens(case, i) for i in range(case.steps)]).prod(0).prod(1)
    torch.testing.assert_close(probability.detach(), case.chance, rtol=0, atol=1e-12)
    gradient: Tensor = torch.autograd.grad((probability * case.reward[:, -1]).sum(), case.table)[0]
    return gradient


@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("mean", 0.5)])
def test_with_one_step_and_plain_weights_it_is_the_policy_gradient(baseline: str, share: float) -> None:
    """The value of a single step is its reward twice, and the mean over two tokens halves their sum."""
    case = toy(1)
    algorithm = MDPO(confidence_weight=False, scale="none", kl_coefficient=0, baseline=baseline)
    expected = reward_gradient(case)
    assert float(expected.norm()) > 0.1
    torch.testing.assert_close(expected_gradient(case, algorithm), share * 2 / 2 * expected, rtol=0, atol=1e-12)


def test_with_more_steps_it_is_another_direction_by_how_much_is_printed() -> None:
    case = toy(2)
    expected = reward_gradient(case)
    cosines = {}
    for confidence, level, scale in product([True, False], [True, False], ["group_std", "none"]):
        found = gradient_of_all_steps(confidence, level, scale)
        cosine = torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
        cosines[confidence, level, scale] = float(cosine)
        print(f"confidence {confidence}, level {level}, {scale}: cosine {cosine:.3f}")
    assert all(0.5 < cosine < 0.999 for cosine in cosines.values())
