"""Co-GRPO: both factors' losses against their formulas, and their expected gradients against the expected reward's.

Actions are integrated over by Gauss-Hermite quadrature, tokens are enumerated.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import softplus

from dllm_rl.algorithms import CJGRPO, CoGRPO, Scores
from dllm_rl.algorithms.base import Batch, Material
from dllm_rl.diffusion.ledger import gaussian_logp
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import RecipeError
from dllm_rl.models.policy_head import attach_head
from dllm_rl.samplers.generate import generate
from dllm_rl.samplers.names import FEATURES
from dllm_rl.training.backward import score_all, score_group
from tests.algorithms.cases import MASK
from tests.samplers.schedules import Scheduling, drifting

WAY = {"sampler": "schedule", "gen_length": 4, "temperature": 0.7, "learned": "commit temperature", "sigma": 0.8}
NETWORK = {"network_updates": 1, "schedule_updates": 0}
SCHEDULE = {"network_updates": 0, "schedule_updates": 1}


def material_of(rollouts: Trajectory, advantage: Tensor | None = None) -> Material:
    advantage = torch.linspace(-1, 2, len(rollouts), dtype=torch.float64) if advantage is None else advantage
    return Material(rollouts.sequences(), rollouts.keys, advantage, rollouts)


def rollouts_of(model: Scheduling, **more: object) -> Trajectory:
    found = generate(model, [[1], [2], [0], [1]], **{**WAY, **more})
    assert len(set(found.nfe)) > 1, "rows should differ in how many steps they took"
    return found


def batch_of(algorithm: CoGRPO, rollouts: Trajectory) -> Batch:
    material = material_of(rollouts)
    return algorithm.prepare(material, material.keys, MASK)


def scored(model: Scheduling, batch: Batch) -> Scores:
    return score_group(model, batch, torch.arange(len(batch.views)))


@pytest.mark.parametrize(
    "more",
    [
        {"learned": "commit temperature"},
        {"learned": "commit cfg_scale", "cfg_scale": 0.6},
        {"learned": "temperature cfg_scale", "cfg_scale": 0.6, "commit": "threshold", "threshold": 0.7},
        {"learned": "commit", "cfg_scale": 0.6},
    ],
    ids=str,
)
def test_tokens_are_scored_at_their_own_steps_temperature_and_guidance(more):
    model = drifting(actions=len(more["learned"].split()))
    rollouts = rollouts_of(model, **more)
    batch = batch_of(CoGRPO(**NETWORK), rollouts)
    assert batch.views.features is None
    torch.testing.assert_close(scored(model, batch).logp, batch.behaviour_logp, rtol=0, atol=1e-12)
    if "temperature" in more["learned"]:
        assert len(batch.views.temperature.unique()) > 4


@pytest.mark.parametrize("cfg_scale", [0.0, 0.6])
def test_a_real_network_scores_them_so_too(tiny, cfg_scale):
    """In float32, with a head that moves temperature and guidance from step to step."""
    learned = "commit temperature" + (" cfg_scale" if cfg_scale else "")
    attach_head(tiny.network, {"type": "schedule", "features": len(FEATURES), "actions": len(learned.split())})
    way = {"learned": learned, "cfg_scale": cfg_scale, "gen_length": 6, "sigma": 0.6}
    rollouts = generate(tiny, [[5, 6, 7], [9]], **{**WAY, **way})
    batch = batch_of(CoGRPO(**NETWORK), rollouts)
    torch.testing.assert_close(score_all(tiny, batch, 3).logp.double(), batch.behaviour_logp, rtol=0, atol=1e-6)
    decisions = batch_of(CoGRPO(**SCHEDULE), rollouts)
    loss = CoGRPO(**SCHEDULE).loss(decisions, score_all(tiny, decisions, 3))
    assert float(loss.metrics["schedule/ratio"].value) == pytest.approx(1.0, abs=1e-6)


def test_the_networks_loss_is_that_of_cj_grpo_on_the_same_rollouts():
    model = drifting(actions=2)
    rollouts = rollouts_of(model)
    settings = {"reduction": "step", "kl_coefficient": 0, "clip_low": 0.2, "clip_high": 0.3}
    other = Scheduling(actions=2, seed=9)
    algorithm = CoGRPO(**NETWORK, **settings)
    batch = batch_of(algorithm, rollouts)
    material = material_of(rollouts)
    theirs = CJGRPO(**settings).prepare(material, material.keys, MASK)
    mine = algorithm.loss(batch, scored(other, batch))
    assert torch.equal(mine.total, CJGRPO(**settings).loss(theirs, scored(other, theirs)).total)
    assert algorithm.count(batch) == 4


@pytest.mark.parametrize("reduction", ["step", "sum"])
def test_the_schedules_loss_is_a_clipped_ratio_of_normal_densities(reduction):
    model, other = drifting(actions=2), drifting(actions=2, head=7)
    rollouts = rollouts_of(model)
    algorithm = CoGRPO(**SCHEDULE, schedule_reduction=reduction, clip_low=0.2, clip_high=0.3)
    batch = batch_of(algorithm, rollouts)
    expected, trace = torch.zeros((), dtype=torch.float64), rollouts.schedule
    for row, steps in enumerate(rollouts.nfe):
        each = torch.zeros((), dtype=torch.float64)
        for step in range(steps):
            seen, action = trace.features[row, step], trace.action[row, step]
            new, old = (
                torch.distributions.Normal(head.schedule_at(seen[None])[0], 0.8).log_prob(action).sum()
                for head in (other, model)
            )
            rho, a = torch.exp(new - old), batch.advantage[row]
            each = each + torch.minimum(rho * a, torch.clamp(rho, 0.8, 1.3) * a)
        expected = expected - (each / steps if reduction == "step" else each)
    loss = algorithm.loss(batch, scored(other, batch))
    torch.testing.assert_close(loss.total, expected)
    assert algorithm.count(batch) == 4
    assert 0 < loss.metrics["schedule/clipped"].value < 1
    assert not [name for name in loss.metrics if name.startswith("policy")]


def test_the_schedules_loss_is_a_sum_over_views_and_asks_no_network():
    model, other = drifting(actions=2), drifting(actions=2, head=7)
    algorithm = CoGRPO(**SCHEDULE)
    batch = batch_of(algorithm, rollouts_of(model))
    whole = scored(other, batch)
    total = algorithm.loss(batch, whole).total
    seen = len(other.seen)
    for size in (1, 3):
        parts = [algorithm.loss(batch, score_group(other, batch, v)).total for v in whole.view.split(size)]
        torch.testing.assert_close(sum(parts), total)
    assert len(other.seen) == seen
    assert not whole.logp.any() and not batch.views.scored.any()
    assert batch.behaviour_logp is not None, "else the trainer would score it again"


@pytest.mark.parametrize("turn", [NETWORK, SCHEDULE])
def test_on_policy_the_ratio_is_one(turn):
    model = drifting(actions=2)
    algorithm = CoGRPO(**turn, kl_coefficient=0)
    batch = batch_of(algorithm, rollouts_of(model))
    loss = algorithm.loss(batch, score_all(model, batch, 2))
    (ratio,) = [mean for name, mean in loss.metrics.items() if name.endswith("/ratio")]
    assert float(ratio.value) == pytest.approx(1.0, abs=1e-12)


def test_turns_follow_the_updates_made():
    algorithm = CoGRPO(network_updates=4, schedule_updates=2, updates_per_rollout=2)
    assert [algorithm.trains(update) for update in range(8)] == [*["network"] * 4, *["head"] * 2, *["network"] * 2]
    rollouts = rollouts_of(drifting(actions=2))
    kinds = [batch_of(algorithm, replace(rollouts, update=update)).action is None for update in (0, 2, 4, 6)]
    assert kinds == [True, True, False, True]
    assert CoGRPO.head == "schedule"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"network_updates": 0, "schedule_updates": 0}, "both 0, so nothing would learn"),
        ({"network_updates": 3, "updates_per_rollout": 2}, "network_updates is 3 and updates_per_rollout 2"),
        ({"network_updates": 2, "schedule_updates": 1, "updates_per_rollout": 2}, "schedule_updates is 1"),
        ({"network_updates": -1}, "greater than or equal to 0"),
    ],
)
def test_nonsense_settings_are_refused(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        CoGRPO(**settings)


def test_rollouts_that_cannot_teach_are_refused():
    model = drifting(actions=2)
    with pytest.raises(RecipeError, match="set rollout.sampler to schedule"):
        batch_of(CoGRPO(), generate(model, [[1]], sampler="rl", gen_length=4, temperature=1.0))
    quiet = generate(model, [[1]], **{**WAY, "sigma": 0.0})
    with pytest.raises(RecipeError, match="set rollout.options.sigma above 0"):
        batch_of(CoGRPO(**SCHEDULE), quiet)
    batch_of(CoGRPO(**NETWORK), quiet)
    cut = generate(model, [[1]], **WAY, top_p=0.9)
    with pytest.raises(RecipeError, match="co_grpo: the rollouts were drawn with top_p or top_k"):
        batch_of(CoGRPO(**NETWORK), cut)


# The oracle: two tokens, one at a time, and a temperature decided before each.

SIGMA, COUNT = 0.3, 5
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(COUNT)
CHANCES = WEIGHTS / WEIGHTS.sum()


class Staged(Scheduling):
    """While rollouts are made its head says what it is told, row by row, step by step."""

    script: list[Tensor] | None = None

    def schedule_at(self, features: Tensor) -> Tensor:
        return super().schedule_at(features) if self.script is None else self.script.pop(0)


class Toy:
    """Every rollout of two tokens after [1] at every pair of quadrature nodes, with weight and reward."""

    def __init__(self, scale: float) -> None:
        plain = drifting(actions=1, longest=3, scale=0.1 * scale)
        self.model = Staged(1, 3, plain.weight, bias=1.0)
        self.model.tables[3] *= 0.2  # so that every rollout turns up
        copies = 200
        pairs = torch.tensor(list(product(range(COUNT), repeat=2))).repeat_interleave(copies, dim=0)
        noise = SIGMA * torch.tensor(NODES)[pairs]  # around means that are added below
        many = self._rollouts(noise)
        texts = torch.tensor(many.completions)
        key = torch.cat([pairs, texts, many.reveal_step], dim=1)
        _, group = torch.unique(key, dim=0, return_inverse=True)
        first = [int((group == each).nonzero()[0]) for each in range(int(group.max()) + 1)]
        assert len(first) == 9 * COUNT**2, "some rollout did not turn up"
        self.rollouts = many.select(first)
        self.of_actions = torch.tensor(CHANCES)[pairs[first]].prod(1)
        reward = [float(sum(text) % 4 + 2 * (text[0] == text[1])) for text in self.rollouts.completions]
        self.reward = torch.tensor(reward, dtype=torch.float64)
        self.table, self.weight = self.model.tables[3].requires_grad_(), self.model.weight.requires_grad_()

    def _rollouts(self, noise: Tensor) -> Trajectory:
        """Tokens drawn at actions mean + noise; the mean of the second depends on the first token, so in two passes."""
        way = {**WAY, "gen_length": 2, "learned": "temperature", "sigma": 0.0}
        actions = noise.clone()
        for step in range(2):
            self.model.script = [actions[:, :1], actions[:, 1:]]
            out = generate(self.model, [[1]] * len(noise), **way)
            self.model.script = None
            actions[:, step] = noise[:, step] + self.model.schedule_at(out.schedule.features[:, step])[:, 0]
        self.model.script = [actions[:, :1], actions[:, 1:]]
        out = generate(self.model, [[1]] * len(noise), **way)
        self.model.script = None
        mean = self.model.schedule_at(out.schedule.features.flatten(0, 1)).view(-1, 2, 1)
        torch.testing.assert_close(out.schedule.action - mean, noise[..., None], rtol=0, atol=1e-12)
        logp = gaussian_logp(out.schedule.action, mean, SIGMA)
        return replace(out, schedule=replace(out.schedule, logp=logp, sigma=SIGMA))

    def expected_gradient(self, algorithm: CoGRPO, parameter: Tensor) -> Tensor:
        """Of minus the mean loss, over all groups of two rollouts.

        On policy a loss is linear in the advantages, so a rollout's may be averaged over its partners.
        """
        chance = self.of_actions * self.tokens().detach()
        pairs = torch.stack(torch.broadcast_tensors(self.reward[:, None], self.reward), dim=-1)
        mine = algorithm.advantages(pairs.flatten(0, 1))[:, 0].view(len(chance), -1)
        advantage = chance * (mine * chance).sum(1)
        batch = algorithm.prepare(material_of(self.rollouts, advantage), self.rollouts.keys, MASK)
        scores = scored(self.model, batch)
        if algorithm.trains(0) == "network":
            scores = replace(scores, schedule=None)
        (gradient,) = torch.autograd.grad(algorithm.loss(batch, scores).total, parameter)
        return -gradient

    def tokens(self) -> Tensor:
        """Probability of every rollout's tokens given its actions, differentiable in the table."""
        batch = batch_of(CoGRPO(**NETWORK), self.rollouts)
        logp = scored(self.model, batch).logp.sum(1)
        return torch.zeros(len(self.rollouts), dtype=torch.float64).index_add(0, batch.views.row, logp).exp()

    def expected_reward(self) -> Tensor:
        """From scratch: actions are mean + sigma x, so that it can be differentiated in table and head."""
        total = torch.zeros((), dtype=torch.float64)

        def step(canvas: list[int], done: int, chance: Tensor) -> None:
            nonlocal total
            if done == 2:
                text = canvas[1:]
                total = total + chance * float(sum(text) % 4 + 2 * (text[0] == text[1]))
                return
            logits = self.model.logits(torch.tensor([canvas]))[0, :, :3]
            hidden = [i for i in (1, 2) if canvas[i] == 3]
            logp = logits[hidden].log_softmax(-1)
            place = hidden[int(logp.amax(-1).argmax())]
            mean = (statistics(logp, len(hidden) / 2, done / 2) @ self.weight)[0] + self.model.bias
            for x, weight in zip(NODES.tolist(), CHANCES.tolist(), strict=True):
                tau = softplus(mean + SIGMA * x + math.log(math.expm1(0.7)))
                q = (logits[place] / tau).softmax(-1)
                for token in range(3):
                    written = [*canvas[:place], token, *canvas[place + 1 :]]
                    step(written, done + 1, chance * weight * q[token])

        step([1, 3, 3], 0, torch.ones((), dtype=torch.float64))
        return total


def statistics(logp: Tensor, left: float, progress: float) -> Tensor:
    parts = [torch.tensor([left, left, progress], dtype=torch.float64)]
    at = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
    for values in (logp.amax(-1), -(logp.exp() * logp).sum(-1)):
        parts += [values.mean()[None], torch.quantile(values, at)]
    return torch.cat(parts)


@cache
def toy(scale: float = 1.0) -> Toy:
    return Toy(scale)


@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("mean", 0.5)])
def test_the_schedules_expected_gradient_is_that_of_the_expected_reward(baseline, share):
    (expected,) = torch.autograd.grad(toy().expected_reward(), toy().weight)
    algorithm = CoGRPO(**SCHEDULE, schedule_reduction="sum", baseline=baseline)
    found = toy().expected_gradient(algorithm, toy().weight)
    assert float(expected.norm()) > 0.01
    torch.testing.assert_close(found, share * expected, rtol=1e-4, atol=0)


def test_the_networks_expected_gradient_is_that_of_the_expected_reward_given_what_the_schedule_saw():
    chance = toy().of_actions * toy().tokens()
    assert float(chance.detach().sum()) == pytest.approx(1.0, abs=1e-12)
    value = (chance * toy().reward).sum()
    whole = toy().expected_reward()
    assert float(value.detach()) == pytest.approx(float(whole.detach()), abs=1e-10)
    (expected,) = torch.autograd.grad(value, toy().table)
    algorithm = CoGRPO(**NETWORK, reduction="sum", baseline="leave_one_out", kl_coefficient=0)
    found = toy().expected_gradient(algorithm, toy().table)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    (complete,) = torch.autograd.grad(whole, toy().table)
    cosine = float(torch.nn.functional.cosine_similarity(found.flatten(), complete.flatten(), dim=0))
    print(f"cosine with the gradient through the statistics too: {cosine:.4f}")
    assert 0.9 < cosine < 1 - 1e-6


def test_the_networks_gradient_is_complete_while_the_head_is_new():
    new = toy(scale=0.0)
    (complete,) = torch.autograd.grad(new.expected_reward(), new.table)
    algorithm = CoGRPO(**NETWORK, reduction="sum", baseline="leave_one_out", kl_coefficient=0)
    torch.testing.assert_close(new.expected_gradient(algorithm, new.table), complete, rtol=0, atol=1e-8)
