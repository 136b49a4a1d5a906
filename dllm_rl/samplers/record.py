"""Collects what the loop does and makes a trajectory of it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.schedule import ScheduleTrace
from dllm_rl.diffusion.trajectory import Events, Exactness, Op, Predictions, Trajectory
from dllm_rl.diffusion.transform import Transform
from dllm_rl.samplers.canvas import Canvas


class Recorder:
    """The log of one rollout, of `num_rows` rows."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._events: list[Events] = []
        self._selection_logp: list[Float64[Tensor, " B"]] = []
        self._entropy: list[Float64[Tensor, " B"]] = []
        self._predicted: list[tuple[Int64[Tensor, "B L"], Float64[Tensor, "B L"]]] = []
        self._schedule: list[ScheduleTrace] = []

    def forward(self, selection_logp: Float64[Tensor, " B"], entropy: Float64[Tensor, " B"] | None) -> None:
        """One forward: the log-probability of what was selected and revised, and the mean entropy if measured."""
        self._selection_logp.append(selection_logp)
        if entropy is not None:
            self._entropy.append(entropy)

    def predicted(self, tokens: Int64[Tensor, "B L"], logq: Float64[Tensor, "B L"]) -> None:
        """The one-step completions of the last forward and their log-probabilities, as `Predictions` has them."""
        self._predicted.append((tokens, logq))

    def scheduled(self, decision: ScheduleTrace) -> None:
        """What a schedule policy decided of the coming step."""
        self._schedule.append(decision)

    def written(
        self, canvas: Canvas, row: Int64[Tensor, " C"], position: Int64[Tensor, " C"], logq: Float64[Tensor, " C"]
    ) -> None:
        """Tokens drawn and written by the last forward, as they stand on the canvas now."""
        cell = (row, position)
        self._log(canvas, Op.WRITE, row, position, logq, canvas.logp[cell], canvas.confidence[cell])

    def changed(self, op: Op, canvas: Canvas, positions: Bool[Tensor, "B L"]) -> None:
        """Positions that were hidden, edited or fixed, as they stand on the canvas now; nothing drew their tokens."""
        row, position = positions.nonzero(as_tuple=True)
        certain = torch.zeros(len(row), dtype=torch.float64, device=row.device)
        unknown = torch.full_like(certain, float("nan"))
        self._log(canvas, op, row, position, certain, unknown, unknown)

    def _log(
        self,
        canvas: Canvas,
        op: Op,
        row: Int64[Tensor, " C"],
        position: Int64[Tensor, " C"],
        logq: Float64[Tensor, " C"],
        logp: Float64[Tensor, " C"],
        confidence: Float64[Tensor, " C"],
    ) -> None:
        if len(row):
            token, step = canvas.completion[row, position], canvas.forwards[row]
            kind = torch.full_like(row, op)
            self._events.append(Events(row, step, position, kind, token, logq, logp, confidence))

    def _sorted(self) -> Events:
        """All events by row; they were recorded by step, so steps and the order within each stay."""
        if not self._events:
            whole, real = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
            return Events(whole, whole, whole, whole, whole, real, real, real)
        events = Events.concatenate(self._events)
        return events.select(events.row.argsort(stable=True))

    def select(self, index: Int64[Tensor, " R"]) -> Recorder:
        """The log of the rows at `index`, repeats allowed: forks share the past."""
        other = Recorder(len(index))
        other._events = [self._sorted().of_rows(index, self._num_rows)]
        other._selection_logp = [logp[index] for logp in self._selection_logp]
        other._entropy = [entropy[index] for entropy in self._entropy]
        other._predicted = [(tokens[index], logq[index]) for tokens, logq in self._predicted]
        other._schedule = [decision.select(index) for decision in self._schedule]
        return other

    def finish(
        self,
        prompts: list[list[int]],
        canvas: Canvas,
        spec: DiffusionSpec,
        transform: Transform,
        exactness: Exactness,
        update: int,
        planner_temperature: float | None = None,
    ) -> Trajectory:
        """The trajectory of everything recorded."""
        none = torch.zeros(self._num_rows, 0, dtype=torch.float64, device=canvas.keys.device)
        return Trajectory(
            prompts=prompts,
            gen_length=canvas.hidden.shape[1],
            events=self._sorted(),
            selection_logp=torch.stack(self._selection_logp, dim=1) if self._selection_logp else none,
            nfe=canvas.forwards.tolist(),
            keys=canvas.keys,
            transform=transform,
            exactness=exactness,
            mask_id=spec.mask_id,
            eos_ids=spec.eos_ids,
            update=update,
            entropy=torch.stack(self._entropy, dim=1) if self._entropy else None,
            predictions=self._predictions(),
            schedule=ScheduleTrace.of_steps(self._schedule) if self._schedule else None,
            block_of=canvas.block_of,
            planner_temperature=planner_temperature,
        )

    def _predictions(self) -> Predictions | None:
        if not self._predicted:
            return None
        tokens, logq = zip(*self._predicted, strict=True)
        return Predictions(torch.stack(tokens, dim=1), torch.stack(logq, dim=1))
