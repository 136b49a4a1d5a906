"""CJ-GRPO against the paper's sums, and its expected gradient, enumerated, against that of the expected reward."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from dllm_rl.algorithms import CJGRPO, Scores
from dllm_rl.algorithms.base import Material
from dllm_rl.diffusion.likelihood import score_views
from dllm_rl.diffusion.replay import replay
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import RecipeError
from dllm_rl.objectives.advantages import group_advantages
from dllm_rl.samplers.generate import generate
from dllm_rl.training.backward import score_group
from tests.algorithms.cases import MASK, make_batch, make_material, make_scores
from tests.samplers.oracle import Table


def test_the_loss_is_the_papers_mean_over_completions_steps_and_tokens() -> None:
    algorithm = CJGRPO(clip_low=0.2, clip_high=0.3, kl_coefficient=0.04)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    expected = torch.zeros((), dtype=torch.float64)
    for row in range(4):
        views = (batch.views.row == row).nonzero()[:, 0].tolist()
        for view in views:
            where = batch.views.scored[view]
            lp, old, ref = (x[view][where] for x in (scores.logp, batch.behaviour_logp, batch.reference_logp))
            rho, a = torch.exp(lp - old), batch.advantage[row]
            pg = torch.minimum(rho * a, torch.clamp(rho, 0.8, 1.3) * a)
            k3 = torch.exp(ref - lp) - (ref - lp) - 1
            expected = expected - (pg - 0.04 * k3).mean() / len(views)
    torch.testing.assert_close(algorithm.loss(batch, scores).total, expected)
    assert algorithm.count(batch) == 4


def test_a_steps_ratio_is_the_geometric_mean_of_its_tokens() -> None:
    algorithm = CJGRPO(ratio_level="step", reduction="sum", kl_coefficient=0, clip_low=0.2, clip_high=0.3)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    expected = torch.zeros((), dtype=torch.float64)
    for view, row in enumerate(batch.views.row.tolist()):
        where = batch.views.scored[view]
        rho = torch.exp((scores.logp[view][where] - batch.behaviour_logp[view][where]).mean())
        a = batch.advantage[row]
        expected = expected - where.sum() * torch.minimum(rho * a, torch.clamp(rho, 0.8, 1.3) * a)
    torch.testing.assert_close(algorithm.loss(batch, scores).total, expected)


@pytest.mark.parametrize("reduction", ["step", "token", "sum"])
def test_a_completions_ratio_is_the_geometric_mean_of_its_tokens_as_the_reduction_weighs_them(reduction: str) -> None:
    way = {"kl_coefficient": 0, "clip_low": 0.2, "clip_high": 0.3}
    algorithm = CJGRPO(ratio_level="sequence", reduction=reduction, **way)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    expected = torch.zeros((), dtype=torch.float64)
    for row in range(4):
        views = (batch.views.row == row).nonzero()[:, 0].tolist()
        logs = [(scores.logp - batch.behaviour_logp)[v][batch.views.scored[v]] for v in views]
        mean = torch.stack([x.mean() for x in logs]).mean() if reduction == "step" else torch.cat(logs).mean()
        rho, a = torch.exp(mean), batch.advantage[row]
        count = 1 if reduction == "step" else len(torch.cat(logs))
        expected = expected - count * torch.minimum(rho * a, torch.clamp(rho, 0.8, 1.3) * a)
    loss = algorithm.loss(batch, scores).total
    torch.testing.assert_close(loss, expected)
    (found,), (wanted,) = (torch.autograd.grad(x, scores.logp) for x in (loss, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("level", ["token", "step", "sequence"])
@pytest.mark.parametrize("reduction", ["step", "token", "sum"])
def test_on_policy_ratios_are_one_and_the_gradient_is_reinforce(level: str, reduction: str) -> None:
    algorithm = CJGRPO(ratio_level=level, reduction=reduction, kl_coefficient=0)
    batch = make_batch(algorithm, moved=False)
    logp = batch.behaviour_logp.clone().requires_grad_()
    loss = algorithm.loss(batch, Scores(logp, torch.arange(len(logp))))
    (gradient,) = torch.autograd.grad(loss.total, logp)
    steps, written = batch.views.row.bincount(), batch.views.scored.sum(1)
    share = 1 / (steps[batch.views.row] * written) if reduction == "step" else torch.ones(len(logp))
    weight = (batch.advantage[batch.views.row] * share)[:, None] * batch.views.scored
    torch.testing.assert_close(gradient, -weight.double())
    assert loss.metrics["policy/ratio"].value == 1.0
    assert loss.metrics["policy/clipped"].value == 0.0
    assert algorithm.count(batch) == (batch.views.scored.sum() if reduction == "token" else 4)


def test_behaviour_is_what_the_rollout_recorded_unless_a_cache_was_out_of_date() -> None:
    algorithm = CJGRPO()
    material = make_material(algorithm)
    assert material.trajectory is not None
    batch = algorithm.prepare(material, material.keys, MASK)
    assert torch.equal(batch.behaviour_logp, replay(material.trajectory, material.sequences).behaviour_logp)
    assert batch.transform == material.trajectory.transform
    strayed = replace(material, trajectory=replace(material.trajectory, exactness="approximate_cache"))
    assert algorithm.prepare(strayed, material.keys, MASK).behaviour_logp is None


def test_the_whole_canvas_is_shown_and_every_draw_scored_after_the_end_of_text_too() -> None:
    algorithm = CJGRPO()
    material = make_material(algorithm)
    ended = replace(material.sequences, scored=material.sequences.scored & (torch.arange(6) < 4))
    assert torch.equal(algorithm.scope(ended).attend, ended.attend)
    batch = algorithm.prepare(replace(material, sequences=ended), material.keys, MASK)
    assert int(batch.views.scored.sum()) == 4 * 4


def test_truncated_rollouts_are_refused() -> None:
    algorithm = CJGRPO()
    material = make_material(algorithm)
    assert material.trajectory is not None
    cut = replace(material.trajectory, transform=replace(material.trajectory.transform, top_p=0.9))
    with pytest.raises(RecipeError, match="cj_grpo: the rollouts were drawn with top_p or top_k"):
        algorithm.prepare(replace(material, trajectory=cut), material.keys, MASK)


class Toy:
    """Every rollout of two or three tokens after the prompt [1], with probability and reward."""

    def __init__(self, sampler: str, length: int, steps: int, temperature: float) -> None:
        self.model = Table(seed=3, longest=1 + length)
        self.model.tables[1 + length] *= 0.3  # so that every rollout turns up
        self.table = self.model.tables[1 + length].requires_grad_()
        self.way = {"sampler": sampler, "gen_length": length, "steps": steps, "temperature": temperature}
        many = generate(self.model, [[1]] * 3000, **self.way)
        first: dict[str, int] = {}
        logs: list[list[tuple[int, ...]]] = [[] for _ in range(len(many))]
        e = many.events
        for row, *event in zip(*(x.tolist() for x in (e.row, e.step, e.position, e.token)), strict=True):
            logs[row].append(tuple(event))
        for row, log in enumerate(logs):
            first.setdefault(str(sorted(log)), row)
        self.rollouts: Trajectory = many.select(list(first.values()))
        reward = [float(sum(text) % 4 + 2 * (text[0] == text[1])) for text in self.rollouts.completions]
        self.reward = torch.tensor(reward, dtype=torch.float64)

    def probability(self) -> Tensor:
        """Of every rollout's tokens, differentiable."""
        sequences = self.rollouts.sequences()
        found = replay(self.rollouts, sequences)
        scores = score_views(
            self.model, sequences, found.views, views_per_forward=500, transform=self.rollouts.transform
        )
        total = torch.zeros(len(self.rollouts), dtype=torch.float64)
        return total.index_add(0, found.views.row, scores.logp.sum(1)).exp()

    def expected_gradient(self, algorithm: CJGRPO, probability: Tensor) -> Tensor:
        """Of minus the mean loss, over all groups of two rollouts."""
        total = torch.zeros_like(self.table)
        chance = probability.tolist()
        for pair in product(range(len(chance)), repeat=2):
            group = self.rollouts.select(list(pair))
            advantage = algorithm.advantages(self.reward[list(pair)][None])[0]
            material = Material(group.sequences(), group.keys, advantage, group)
            batch = algorithm.prepare(material, group.keys, self.model.spec.mask_id)
            scores = score_group(self.model, batch, torch.arange(len(batch.views)))
            loss = algorithm.loss(batch, scores).total / algorithm.count(batch)
            total -= chance[pair[0]] * chance[pair[1]] * torch.autograd.grad(loss, self.table)[0]
        return total


@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("mean", 0.5)])
@pytest.mark.parametrize("steps", [1, 2])
def test_expected_gradient_is_that_of_the_expected_reward(baseline: str, share: float, steps: int) -> None:
    """`rl` chooses where to write without looking at the draws, so the tokens are all there is."""
    toy = Toy("rl", length=2, steps=steps, temperature=0.7)
    probability = toy.probability()
    assert float(probability.detach().sum()) == pytest.approx(1.0, abs=1e-12)
    (expected,) = torch.autograd.grad((probability * toy.reward).sum(), toy.table)
    algorithm = CJGRPO(reduction="sum", kl_coefficient=0, baseline=baseline)
    found = toy.expected_gradient(algorithm, probability.detach())
    assert float(expected.norm()) > 0.1
    torch.testing.assert_close(found, share * expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_papers_reduction_is_another_direction() -> None:
    """What weighs steps alike whatever they wrote does not follow the expected reward; by how much is printed."""
    toy = Toy("rl", length=3, steps=2, temperature=0.7)  # two tokens, then one
    probability = toy.probability()
    assert float(probability.detach().sum()) == pytest.approx(1.0, abs=1e-12)
    (expected,) = torch.autograd.grad((probability * toy.reward).sum(), toy.table)
    found = toy.expected_gradient(CJGRPO(kl_coefficient=0, baseline="leave_one_out"), probability.detach())
    cosine = float(torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0))
    print(f"cosine with the policy gradient: {cosine:.3f}")
    assert 0.9 < cosine < 0.999


def test_where_the_draws_choose_the_positions_the_gradient_misses_a_term() -> None:
    """LLaDA's order: the derivative of the expected reward along the estimate is not the estimate's square."""
    toy = Toy("llada", length=2, steps=2, temperature=0.7)
    probability = toy.rollouts.behaviour_logp.exp()
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
    algorithm = CJGRPO(reduction="sum", kl_coefficient=0, baseline="leave_one_out")
    estimate = toy.expected_gradient(algorithm, probability)

    def reward_at(step: float) -> float:
        with torch.no_grad():
            toy.table += step * estimate
            many = generate(toy.model, [[1]] * 3000, **toy.way)
            toy.table -= step * estimate
        chances = {str(row): float(p) for row, p in zip(_orders(many), many.behaviour_logp.exp(), strict=True)}
        rewards = {
            str(row): float(sum(text) % 4 + 2 * (text[0] == text[1]))
            for row, text in zip(_orders(many), many.completions, strict=True)
        }
        assert sum(chances.values()) == pytest.approx(1.0, abs=1e-12)
        return sum(chances[key] * rewards[key] for key in chances)

    slope = (reward_at(1e-5) - reward_at(-1e-5)) / 2e-5
    share = slope / float(estimate.square().sum())
    print(f"slope along the estimate over its square: {share:.3f}; 1 were unbiased")
    assert abs(share - 1) > 0.01


def _orders(out: Trajectory) -> list[tuple[list[int], list[int]]]:
    return list(zip(out.completions, out.reveal_step.tolist(), strict=True))


def test_groups_advantages_are_the_shared_ones() -> None:
    reward = torch.tensor([[0.0, 1.0, 3.0]])
    made = CJGRPO(baseline="leave_one_out", scale="group_std").advantages(reward)
    assert torch.equal(made, group_advantages(reward, baseline="leave_one_out", scale="group_std"))
