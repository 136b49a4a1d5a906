"""Small models with a schedule head, for tests of what plans and of what learns to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.samplers.names import FEATURES
from tests.samplers.oracle import Table


class Scheduling(Table):
    """A table with a schedule head: a linear map of the features, zero if not said otherwise."""

    def __init__(
        self,
        actions: int = 1,
        longest: int = 6,
        weight: Tensor | None = None,
        bias: float = 0.0,
        seed: int = 4,
        words: int = 3,
        eos_ids: tuple[int, ...] = (),
    ) -> None:
        super().__init__(seed=seed, words=words, longest=longest, eos_ids=eos_ids)
        self.weight = torch.zeros(len(FEATURES), actions, dtype=torch.float64) if weight is None else weight
        self.bias = bias

    def schedule_at(self, features: Tensor) -> Tensor:
        return features @ self.weight + self.bias


def drifting(actions: int, longest: int = 6, head: int = 1, scale: float = 0.3, words: int = 3) -> Scheduling:
    """One whose head says something."""
    generator = torch.Generator().manual_seed(head)
    weight = scale * torch.randn(len(FEATURES), actions, generator=generator, dtype=torch.float64)
    return Scheduling(actions, longest, weight, bias=0.2, words=words)


EXPLORING = [
    {"learned": "commit", "sigma": 0.8},
    {"learned": "commit temperature", "sigma": 0.6, "steps": 4, "block_length": 2},
    {"learned": "commit temperature ranking_temperature", "ranking_temperature": 0.4, "sigma": 0.9, "steps": 2},
    {"learned": "temperature", "ranking_temperature": 0.4, "sigma": 0.9, "steps": 2},
    {"learned": "commit temperature", "commit": "threshold", "threshold": 0.5, "sigma": 1.5},
    {"learned": "commit cfg_scale", "cfg_scale": 0.5, "sigma": 0.8},
]


def explorer(way) -> Scheduling:
    return drifting(actions=len(way["learned"].split()))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def inverse_softplus(y: float) -> float:
    return math.log(math.expm1(y))


def logit(p: float) -> float:
    return math.log(p / (1 - p)) if p < 1 else math.inf


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x < math.inf else 1.0


def probability_from_scratch(out: Trajectory, row: int, model: Scheduling, way, temperature: float) -> float:
    """Log-probability of a rollout from what it wrote and the actions it took, and a check that these explain it."""
    words, prompt, length = model.spec.mask_id, out.prompts[row], 4
    names = [name for name in ("commit", "temperature", "ranking_temperature", "cfg_scale") if name in way["learned"]]
    block, total = way.get("block_length", length), 0.0
    steps, opening = way.get("steps", length) // (length // block), 0
    for step in range(out.nfe[row]):
        completion = out.completion_canvas(step)[row].tolist()
        hidden = [i for i, token in enumerate(completion) if token == words]
        open_now = [i for i in hidden if i // block == hidden[0] // block]
        if len(open_now) == block:
            opening = step
        action = dict(zip(names, out.schedule.action[row, step].tolist(), strict=True))
        dense = model.logits(torch.tensor([[*prompt, *completion]]))[0, len(prompt) :, :words]
        blind = model.logits(torch.tensor([[words] * len(prompt) + completion]))[0, len(prompt) :, :words]
        if "cfg_scale" in action:
            w = softplus(inverse_softplus(way["cfg_scale"]) + action["cfg_scale"])
            dense = blind + (w + 1) * (dense - blind)
        tau = softplus(inverse_softplus(temperature) + action.get("temperature", 0.0))
        sure = {i: float(dense[i].log_softmax(-1).max()) for i in open_now}
        events = out.events
        here = ((events.row == row) & (events.step == step + 1)).nonzero()[:, 0].tolist()
        wrote = {int(events.position[i]): int(events.token[i]) for i in here}
        if way.get("commit") == "threshold":
            theta = sigmoid(logit(way["threshold"]) + action["commit"])
            assert float(out.schedule.commit[row, step]) == pytest.approx(theta, abs=1e-12)
            assert set(wrote) == {i for i in open_now if math.exp(sure[i]) >= theta or sure[i] == max(sure.values())}
        else:
            quota = block // steps + (step - opening < block % steps)
            share = sigmoid(logit(min(quota, len(open_now)) / len(open_now)) + action.get("commit", 0.0))
            assert float(out.schedule.commit[row, step]) == pytest.approx(share, abs=1e-12)
            assert len(wrote) == min(max(round(share * len(open_now)), 1), len(open_now))
            manual = way.get("ranking_temperature", 0.0)
            if manual:
                noise = softplus(inverse_softplus(manual) + action.get("ranking_temperature", 0.0))
                if "ranking_temperature" in action:
                    assert float(out.schedule.ranking_temperature[row, step]) == pytest.approx(noise, abs=1e-12)
                left = list(open_now)
                for i in (int(events.position[i]) for i in here):
                    total += sure[i] / noise - math.log(sum(math.exp(sure[j] / noise) for j in left))
                    left.remove(i)
            else:
                assert set(wrote) == set(sorted(open_now, key=lambda i: (-sure[i], i))[: len(wrote)])
        total += sum(float((dense[i] / tau).log_softmax(-1)[token]) for i, token in wrote.items())
        mean = out.schedule.features[row, step] @ model.weight + model.bias
        normal = torch.distributions.Normal(mean, way["sigma"])
        total += float(normal.log_prob(out.schedule.action[row, step]).sum())
    return total
