"""Where micro-batches come from: texts, preference pairs, or the policy's own rollouts with their rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from dllm_rl.algorithms.base import Algorithm, Material
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.diffusion.views import Sequences
from dllm_rl.objectives.reduce import Mean, mean_of
from dllm_rl.rng import fold
from dllm_rl.rollouts.composition import statistics
from dllm_rl.rollouts.engine import RolloutEngine
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.training.data import Example, PromptRow
from dllm_rl.training.order import Layout, Visit, visit_at, visit_keys


@dataclass(frozen=True, slots=True)
class Sample:
    """One rollout as a person reads it."""

    prompt: str
    completion: str
    reward: float
    advantage: float


@dataclass(frozen=True, slots=True)
class Harvest:
    """All that one window's updates learn from on this process."""

    material: list[Material]
    metrics: dict[str, Mean] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)


class Source(Protocol):
    """Makes the material of a window; a pure function of (seed, window, layout) and, for rollouts, of the weights."""

    def harvest(self, window: int, layout: Layout, update: int) -> Harvest:
        """Material of a window that opens before `update` + 1."""
        ...


def _visits(seed: int, window: int, layout: Layout, micro_batch: int, num_rows: int) -> list[Visit]:
    return [visit_at(seed, window, s, layout.slots_per_update, num_rows) for s in layout.slots(micro_batch)]


@dataclass(frozen=True, slots=True)
class ExampleSource:
    """Texts to learn or pairs to compare, the completions of a row one after the other.

    With pairs, rows 2i and 2i + 1 of a micro-batch are thus the chosen and the rejected text of pair i.
    """

    rows: Sequence[Example]
    seed: int
    pad_id: int
    device: torch.device

    def harvest(self, window: int, layout: Layout, update: int) -> Harvest:
        return Harvest([self._material(window, layout, m) for m in range(layout.num_micro_batches)])

    def _material(self, window: int, layout: Layout, micro_batch: int) -> Material:
        visits = _visits(self.seed, window, layout, micro_batch, len(self.rows))
        rows = [self.rows[v.row] for v in visits]
        prompts = [row.prompt for row in rows for _ in row.completions]
        completions = [ids for row in rows for ids in row.completions]
        sequences = sequences_from_ids(prompts, completions, self.pad_id, self.device)
        return Material(sequences, visit_keys(self.seed, visits, len(rows[0].completions)).to(self.device))


Decoder = Callable[[Sequence[int]], str]
"""Text of a completion's ids, up to its first end-of-text id."""


@dataclass(frozen=True, slots=True)
class RolloutSource:
    """Prompts answered by the policy, judged by reward functions; a prompt's whole group stays on one process."""

    rows: Sequence[PromptRow]
    seed: int
    engine: RolloutEngine
    panel: RewardPanel
    algorithm: Algorithm
    num_generations: int
    decode: Decoder
    device: torch.device

    def harvest(self, window: int, layout: Layout, update: int) -> Harvest:
        rows, keys, trajectory = _answers(self, window, layout, update)
        texts = [self.decode(ids) for ids in trajectory.completions]
        judged = self.panel(
            [row.prompt for row in rows],
            [row.as_completion(text) for row, text in zip(rows, texts, strict=True)],
            _until_end(trajectory),
            _columns(rows),
            rollout={"forwards": trajectory.nfe, "gen_length": [trajectory.tokens.shape[1]] * len(rows)},
            group_size=self.num_generations,
            update=update + 1,
        )
        reward = torch.tensor(judged.total, dtype=torch.float64, device=self.device).view(-1, self.num_generations)
        advantage = self.algorithm.advantages(reward)
        sequences = self.algorithm.scope(trajectory.sequences())
        material = [
            Material(sequences.select(part), keys[part], advantage.flatten()[part], trajectory.select(part.tolist()))
            for part in _micro_batches(self, layout)
        ]
        judgements = zip(rows, texts, reward.flatten().tolist(), advantage.flatten().tolist(), strict=True)
        samples = [Sample(row.as_text(), text, r, a) for row, text, r, a in judgements]
        metrics = _rollout_metrics(reward, judged.per_function, sequences, trajectory.nfe)
        if self.panel.shapes:
            metrics["reward/unshaped"] = mean_of(torch.tensor(judged.unshaped, dtype=torch.float64))
        return Harvest(material, metrics, samples)


@dataclass(frozen=True, slots=True)
class DemonstrationSource:
    """Prompts answered by a sampler that is to be imitated; nothing judges the answers."""

    rows: Sequence[PromptRow]
    seed: int
    engine: RolloutEngine
    algorithm: Algorithm
    num_generations: int
    device: torch.device

    def harvest(self, window: int, layout: Layout, update: int) -> Harvest:
        _, keys, trajectory = _answers(self, window, layout, update)
        sequences = self.algorithm.scope(trajectory.sequences())
        material = [
            Material(sequences.select(part), keys[part], trajectory=trajectory.select(part.tolist()))
            for part in _micro_batches(self, layout)
        ]
        forwards = torch.tensor(trajectory.nfe, dtype=torch.float64)
        return Harvest(material, {"rollout/forwards": mean_of(forwards)})


def _answers(
    source: RolloutSource | DemonstrationSource, window: int, layout: Layout, update: int
) -> tuple[list[PromptRow], Tensor, Trajectory]:
    """Rows of a window, each once per completion, the completions' keys, and how they were written."""
    visits = [
        visit
        for micro_batch in range(layout.num_micro_batches)
        for visit in _visits(source.seed, window, layout, micro_batch, len(source.rows))
    ]
    rows = [source.rows[v.row] for v in visits for _ in range(source.num_generations)]
    keys = visit_keys(source.seed, visits, source.num_generations).to(source.device)
    return rows, keys, source.engine.generate([row.ids for row in rows], fold(keys, "rollout"), update)


def _micro_batches(source: RolloutSource | DemonstrationSource, layout: Layout) -> tuple[Tensor, ...]:
    """Which completions of a window each micro-batch holds."""
    size = layout.per_device * source.num_generations
    return torch.split(torch.arange(size * layout.num_micro_batches, device=source.device), size)


def _until_end(trajectory: Trajectory) -> list[list[int]]:
    """Ids of each completion up to and including its first end of text, as TRL's reward convention has them."""
    return [
        [token for token, kept in zip(tokens, keep, strict=True) if kept]
        for tokens, keep in zip(trajectory.completions, trajectory.written.tolist(), strict=True)
    ]


def _columns(rows: Sequence[PromptRow]) -> dict[str, list[Any]]:
    """Dataset columns as lists, one entry per completion, as reward functions take them."""
    return {name: [row.columns[name] for row in rows] for name in rows[0].columns}


def _rollout_metrics(
    reward: Tensor, per_function: dict[str, list[float | None]], sequences: Sequences, nfe: Sequence[int]
) -> dict[str, Mean]:
    length = sequences.scored.sum(-1).double()
    full = (sequences.scored == sequences.completion).all(-1)
    same = (reward.amax(1) == reward.amin(1)).double()
    metrics = {
        "reward/mean": mean_of(reward),
        "reward/zero_variance_groups": mean_of(same),
        "completion/length": mean_of(length),
        "completion/fills_canvas": mean_of(full.double()),
        "rollout/forwards": mean_of(torch.tensor(nfe, dtype=torch.float64)),
    }
    for name, given in per_function.items():
        for kind, values in statistics(given, reward.shape[1]).items():
            metrics[f"reward/{name}{kind}"] = mean_of(torch.tensor(values, dtype=torch.float64))
    return metrics
