"""Where micro-batches come from: texts, preference pairs, or the policy's own rollouts with their rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Int64
from torch import Tensor

from dllm_rl.algorithms.base import Algorithm, Material
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.diffusion.trajectory import Op, Trajectory
from dllm_rl.objectives.reduce import Mean, mean_of
from dllm_rl.rng import fold
from dllm_rl.rollouts.composition import statistics
from dllm_rl.rollouts.engine import RolloutEngine
from dllm_rl.rollouts.hints import Hint
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.training.data import Example, PromptRow, columns_of
from dllm_rl.training.inpaint import Inpainter
from dllm_rl.training.judged import Judged
from dllm_rl.training.order import Layout, Visit, visit_at, visit_keys
from dllm_rl.training.steps import credit_steps, make_judge


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
    inpainter: Inpainter | None = None
    """Rescues groups that fail; None: they are left as they are."""

    def harvest(self, window: int, layout: Layout, update: int) -> Harvest:
        rows, keys = _asked(self, window, layout)
        judged = learned = self._roll_out(rows, fold(keys, "rollout"), update=update)
        more: dict[str, Mean] = {}
        if self.inpainter is not None:
            learned, more = self.inpainter.augment(judged, keys, partial(self._roll_out, update=update))
        advantage = self.algorithm.advantages(learned.reward.view(-1, self.num_generations)).flatten()
        sequences = self.algorithm.scope(learned.trajectory.sequences())
        metrics = _rollout_metrics(judged, self.num_generations) | more
        if self.panel.shapes:
            metrics["reward/unshaped"] = mean_of(judged.unshaped)
        credit = None
        if self.algorithm.judges_steps:
            judge = make_judge(self.panel, self.decode, judged.trajectory.eos_ids)
            credit, of_steps = credit_steps(
                self.algorithm, judge, rows, judged.trajectory, self.num_generations, update + 1
            )
            metrics |= of_steps
        material = [
            Material(
                sequences.select(part),
                keys[part],
                advantage[part],
                learned.trajectory.select(part.tolist()),
                credit=None if credit is None else credit.select(part),
                first=_first(part, self.num_generations),
            )
            for part in _micro_batches(self, layout)
        ]
        judgements = zip(rows, learned.texts, learned.reward.tolist(), advantage.tolist(), strict=True)
        samples = [Sample(row.as_text(), text, r, a) for row, text, r, a in judgements]
        return Harvest(material, metrics, samples)

    def _roll_out(
        self, rows: list[PromptRow], keys: Int64[Tensor, " B"], fixed: list[Hint] | None = None, *, update: int
    ) -> Judged:
        """Write a completion for each row, around what is given, and judge it."""
        trajectory = self.engine.generate([row.ids for row in rows], keys, update, fixed=fixed)
        texts = [self.decode(ids) for ids in trajectory.completions]
        judged = self.panel(
            [row.prompt for row in rows],
            [row.as_completion(text) for row, text in zip(rows, texts, strict=True)],
            _until_end(trajectory),
            columns_of(rows),
            rollout={"forwards": trajectory.nfe, "gen_length": [trajectory.gen_length] * len(rows)},
            group_size=self.num_generations,
            update=update + 1,
        )
        reward, unshaped = (
            torch.tensor(total, dtype=torch.float64, device=self.device) for total in (judged.total, judged.unshaped)
        )
        return Judged(rows, trajectory, texts, reward, unshaped, judged.per_function)


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
        rows, keys = _asked(self, window, layout)
        trajectory = self.engine.generate([row.ids for row in rows], fold(keys, "rollout"), update)
        sequences = self.algorithm.scope(trajectory.sequences())
        material = [
            Material(
                sequences.select(part),
                keys[part],
                trajectory=trajectory.select(part.tolist()),
                first=_first(part, self.num_generations),
            )
            for part in _micro_batches(self, layout)
        ]
        forwards = torch.tensor(trajectory.nfe, dtype=torch.float64)
        return Harvest(material, {"rollout/forwards": mean_of(forwards)})


def _asked(
    source: RolloutSource | DemonstrationSource, window: int, layout: Layout
) -> tuple[list[PromptRow], Int64[Tensor, " B"]]:
    """Rows of a window, each once per completion, and the completions' keys."""
    visits = [
        visit
        for micro_batch in range(layout.num_micro_batches)
        for visit in _visits(source.seed, window, layout, micro_batch, len(source.rows))
    ]
    rows = [source.rows[v.row] for v in visits for _ in range(source.num_generations)]
    return rows, visit_keys(source.seed, visits, source.num_generations).to(source.device)


def _micro_batches(source: RolloutSource | DemonstrationSource, layout: Layout) -> tuple[Tensor, ...]:
    """Which completions of a window each micro-batch holds."""
    size = layout.per_device * source.num_generations
    return torch.split(torch.arange(size * layout.num_micro_batches, device=source.device), size)


def _first(part: Tensor, num_generations: int) -> Int64[Tensor, " B"]:
    """In a micro-batch of whole groups, the place of the first of each completion's group."""
    place = torch.arange(len(part), device=part.device)
    return place - place % num_generations


def _until_end(trajectory: Trajectory) -> list[list[int]]:
    """Ids of each completion up to and including its first end of text, as TRL's reward convention has them."""
    return [
        [token for token, kept in zip(tokens, keep, strict=True) if kept]
        for tokens, keep in zip(trajectory.completions, trajectory.written.tolist(), strict=True)
    ]


def _rollout_metrics(judged: Judged, num_generations: int) -> dict[str, Mean]:
    """Of what the policy wrote by itself."""
    reward = judged.reward.view(-1, num_generations)
    trajectory, sequences = judged.trajectory, judged.trajectory.sequences()
    length = sequences.scored.sum(-1).double()
    full = (sequences.scored == sequences.completion).all(-1)
    same = (reward.amax(1) == reward.amin(1)).double()
    forwards = torch.tensor(trajectory.nfe, dtype=torch.float64, device=length.device)
    drawn = trajectory.events.op == Op.WRITE
    metrics = {
        "reward/mean": mean_of(reward),
        "reward/zero_variance_groups": mean_of(same),
        "completion/length": mean_of(length),
        "completion/fills_canvas": mean_of(full.double()),
        "rollout/forwards": mean_of(forwards),
        "rollout/tokens_per_forward": Mean(length.sum(), forwards.sum()),
        "rollout/surprisal": mean_of(-trajectory.events.logq[drawn]),
    }
    for name, given in judged.per_function.items():
        for kind, values in statistics(given, num_generations).items():
            metrics[f"reward/{name}{kind}"] = mean_of(torch.tensor(values, dtype=torch.float64))
    return metrics
