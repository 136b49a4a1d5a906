"""What a sampler did, event by event, and everything that can be derived from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.nn.functional import pad

from dllm_rl.diffusion.schedule import ScheduleTrace
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.diffusion.transform import Transform
from dllm_rl.diffusion.views import Sequences

Exactness = Literal["exact", "exact_with_F", "approximate_cache", "none"]
"""What `behaviour_logp` is: the log-probability of the trajectory, from token draws and a selection that needs no
further term or a known one ("exact"); the same with the F terms of a selection that looked at the draws
("exact_with_F"); that of a network whose cache was out of date, so not the model's own ("approximate_cache"); or
nothing, because the rollout was greedy or its selection has no known law ("none")."""


class Op(IntEnum):
    """What happened to a position."""

    WRITE = 0
    """A hidden position received a token."""
    REMASK = 1
    """A written position was hidden again; the event's token is the mask id."""
    EDIT = 2
    """A written position received another token."""
    FIX = 3
    """A position received a token that nothing drew: given from the start (at step 0), or filled after the end."""


@dataclass(frozen=True, slots=True)
class Events:
    """A log in CSR order: sorted by row, then step, then the order within the step."""

    row: Int64[Tensor, " E"]
    step: Int64[Tensor, " E"]
    """The forward that caused the event, counted from 1; 0 for tokens given."""
    position: Int64[Tensor, " E"]
    """Place in the completion, counted from 0."""
    op: Int64[Tensor, " E"]
    token: Int64[Tensor, " E"]
    logq: Float64[Tensor, " E"]
    """Log-probability of the token under the distribution it was drawn from, nats; NaN when it was drawn greedily, 0
    when it was not drawn."""
    logp: Float64[Tensor, " E"]
    """Log-probability of the token under the full softmax at temperature 1 (guided, if the rollout was), nats."""
    conf: Float64[Tensor, " E"]
    """The score for which the position was selected; its meaning is the sampler's."""

    def select(self, index: Int64[Tensor, " S"]) -> Events:
        return Events(*(getattr(self, field.name)[index] for field in fields(self)))

    def of_rows(self, rows: Int64[Tensor, " R"], num_rows: int) -> Events:
        """The events of `rows`, repeated as often as they are named, renumbered in that order."""
        bounds = torch.searchsorted(self.row, torch.arange(num_rows + 1, device=self.row.device))
        sizes = bounds.diff()[rows]
        row = torch.repeat_interleave(torch.arange(len(rows), device=self.row.device), sizes)
        starts = torch.cumsum(sizes, dim=0) - sizes
        place = bounds[rows][row] + torch.arange(len(row), device=self.row.device) - starts[row]
        return replace(self.select(place), row=row)

    @staticmethod
    def concatenate(parts: Sequence[Events]) -> Events:
        return Events(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Events)))


@dataclass(frozen=True, slots=True)
class Predictions:
    """The whole completion as it would have stood, had every step written all that was hidden: one-step completions.

    After a row's last forward: its completion, log-probabilities 0.
    """

    tokens: Int64[Tensor, "B S L"]
    """What stood before the step, and a draw at every position hidden then, those of later blocks too."""
    logq: Float64[Tensor, "B S L"]
    """Log-probability of each draw under the distribution drawn from, nats; 0 where a token stood, NaN when greedy."""

    def select(self, rows: Int64[Tensor, " R"]) -> Predictions:
        return Predictions(self.tokens[rows], self.logq[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """B completions and how they came to be: an event log; every dense field is derived from it.

    Two likelihoods must not be confused. `behaviour_logp` is that of the whole trajectory, order included; it is not
    the likelihood of the text, which sums over orders. `token_behaviour_logp` is the tokens' part of it.

    Source: specification in the style of Wang et al. (TraceRL), https://arxiv.org/abs/2509.06949; the log also holds
    remasks and edits, so any canvas is replayed from it.
    """

    prompts: list[list[int]]
    gen_length: int
    events: Events
    selection_logp: Float64[Tensor, "B S"]
    """Log-probability that each step selected the positions it did, given the tokens drawn there, nats; 0 where the
    selection could not have been another."""
    nfe: list[int]
    """Network evaluations each row took part in, the first so many; a guided evaluation counts once."""
    keys: Int64[Tensor, " B"]
    """The keys every draw of the row was folded from."""
    transform: Transform
    exactness: Exactness
    mask_id: int
    eos_ids: tuple[int, ...]
    update: int
    """Version of the weights that wrote this."""
    entropy: Float64[Tensor, "B S"] | None = None
    """Mean entropy of the open positions' predictions at each step, nats at temperature 1; NaN after a row's last
    forward. None if it was not measured."""
    predictions: Predictions | None = None
    """What every step predicted of all that was hidden; None if it was not recorded. Where the step wrote, it is what
    was drawn and written."""
    schedule: ScheduleTrace | None = None
    """What a schedule policy decided at each step; None if there was none."""
    block_of: Int64[Tensor, "B L"] | None = None
    """The block of each position, counted from 0 and written in that order. None if it was not recorded."""
    planner_temperature: float | None = None
    """What a planner head's logits were divided by before a coin was thrown for every open position. None if it was not
    such coins that chose the positions."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def num_steps(self) -> int:
        """Forwards of the longest row."""
        return self.selection_logp.shape[1]

    @property
    def prompt_length(self) -> int:
        """Columns that left-padded prompts take."""
        return max((len(prompt) for prompt in self.prompts), default=0)

    def _final(self, values: Tensor, empty: int | float, steps: int) -> Tensor:
        """[B, L]: `values` of the last event that touched each position in the first `steps` forwards."""
        events = self.events
        index = torch.arange(len(events.row), device=self.device)[events.step <= steps]
        cell = (events.row * self.gen_length + events.position)[index]
        last = torch.full((len(self) * self.gen_length,), -1, dtype=torch.int64, device=self.device)
        last = last.scatter_reduce(0, cell, index, "amax")
        dense = torch.full(last.shape, empty, dtype=values.dtype, device=self.device)
        touched = last >= 0
        dense[touched] = values[last[touched]]
        return dense.view(len(self), self.gen_length)

    def completion_canvas(self, steps: int) -> Int64[Tensor, "B L"]:
        """The completions as they stood after `steps` forwards; hidden positions hold the mask id.

        Raises:
            ValueError: fewer than 0 or more than `num_steps` forwards.
        """
        if not 0 <= steps <= self.num_steps:
            raise ValueError(f"canvas after {steps} forwards asked for; expected 0 to {self.num_steps}")
        return self._final(self.events.token, self.mask_id, steps)

    def canvas(self, steps: int) -> Int64[Tensor, "B N"]:
        """What the model sees after `steps` forwards: prompts, padded on the left, then completions.

        0: nothing written but what was given.
        """
        return torch.cat([self._prompt.tokens, self.completion_canvas(steps)], dim=1)

    @property
    def _prompt(self) -> Sequences:
        pad_id = self.eos_ids[0] if self.eos_ids else self.mask_id
        return sequences_from_ids(self.prompts, [[]] * len(self), pad_id, self.device)

    @property
    def tokens(self) -> Int64[Tensor, "B L"]:
        """The completions."""
        return self.completion_canvas(self.num_steps)

    @property
    def completions(self) -> list[list[int]]:
        rows: list[list[int]] = self.tokens.tolist()
        return rows

    @property
    def reveal_step(self) -> Int64[Tensor, "B L"]:
        """Forwards done when each position received its final token, counted from 1."""
        return self._final(self.events.step, 0, self.num_steps)

    @property
    def behaviour_logp(self) -> Float64[Tensor, " B"]:
        """Log-probability of each trajectory, nats: all token draws, overwritten ones too, and all selections; with a
        schedule policy that explored, the log-density of its actions besides.

        NaN when `exactness` is "none". When it is "approximate_cache" this is what the rollout's own network said,
        which is not what scoring the canvases gives.
        """
        if self.exactness == "none":
            return torch.full((len(self),), float("nan"), dtype=torch.float64, device=self.device)
        total = self.selection_logp.sum(dim=1)
        if self.schedule is not None:
            total = total + self.schedule.logp.sum(dim=1)
        return total.index_add(0, self.events.row, self.events.logq)

    @property
    def token_behaviour_logp(self) -> Float64[Tensor, "B N"]:
        """Log-probability of each final token when it was drawn, nats; zero on prompts. Aligned with `sequences`."""
        return pad(self._final(self.events.logq, 0.0, self.num_steps), (self.prompt_length, 0))

    def _is_eos(self) -> Bool[Tensor, "B L"]:
        return torch.isin(self.tokens, torch.tensor(self.eos_ids, dtype=torch.int64, device=self.device))

    @property
    def finished(self) -> Bool[Tensor, " B"]:
        """Rows that wrote an end-of-sequence token."""
        return self._is_eos().any(dim=1)

    @property
    def written(self) -> Bool[Tensor, "B L"]:
        """Positions up to and including the first end-of-sequence token."""
        eos = self._is_eos().to(torch.int64)
        return eos.cumsum(dim=1) - eos == 0

    @property
    def given(self) -> Bool[Tensor, "B L"]:
        """Positions whose token nothing drew."""
        return self._final(self.events.op, Op.WRITE, self.num_steps) == Op.FIX

    def sequences(self) -> Sequences:
        """Prompts, padded on the left, and completions in one rectangle.

        Scored are the tokens drawn, up to the first end of sequence.
        """
        prompt, written = self._prompt, self.written & ~self.given
        nothing, everything = torch.zeros_like(prompt.attend), torch.ones_like(written)
        return Sequences(
            tokens=torch.cat([prompt.tokens, self.tokens], dim=1),
            attend=torch.cat([prompt.attend, everything], dim=1),
            completion=torch.cat([nothing, everything], dim=1),
            scored=torch.cat([nothing, written], dim=1),
        )

    def select(self, rows: Sequence[int]) -> Trajectory:
        """The trajectories of `rows`, in that order."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        return replace(
            self,
            prompts=[self.prompts[row] for row in rows],
            events=self.events.of_rows(index, len(self)),
            selection_logp=self.selection_logp[index],
            entropy=None if self.entropy is None else self.entropy[index],
            predictions=None if self.predictions is None else self.predictions.select(index),
            schedule=None if self.schedule is None else self.schedule.select(index),
            nfe=[self.nfe[row] for row in rows],
            keys=self.keys[index],
            block_of=None if self.block_of is None else self.block_of[index],
        )

    @staticmethod
    def concatenate(parts: Sequence[Trajectory]) -> Trajectory:
        """One trajectory of all rows, in order. The parts must come from one sampler and one version of the weights.

        Raises:
            ValueError: nothing to join, or the parts differ in how they were sampled.
        """
        manners = {
            (
                part.gen_length,
                part.transform,
                part.exactness,
                part.mask_id,
                part.eos_ids,
                part.update,
                None if part.schedule is None else part.schedule.sigma,
                part.planner_temperature,
            )
            for part in parts
        }
        if len(manners) != 1:
            raise ValueError(
                f"trajectories joined were sampled in {len(manners)} ways; expected exactly one: {manners}"
            )
        first_rows = [0, *accumulate(len(part) for part in parts)]
        moved = [
            replace(part.events, row=part.events.row + start)
            for part, start in zip(parts, first_rows[:-1], strict=True)
        ]
        steps = max(part.num_steps for part in parts)
        return replace(
            parts[0],
            prompts=[prompt for part in parts for prompt in part.prompts],
            events=Events.concatenate(moved),
            selection_logp=torch.cat([pad(part.selection_logp, (0, steps - part.num_steps)) for part in parts]),
            entropy=_joined_entropies(parts, steps),
            predictions=_joined_predictions(parts, steps),
            schedule=_joined_schedules(parts),
            nfe=[count for part in parts for count in part.nfe],
            keys=torch.cat([part.keys for part in parts]),
            block_of=_joined_blocks(parts),
        )


def _joined_schedules(parts: Sequence[Trajectory]) -> ScheduleTrace | None:
    traces = [part.schedule for part in parts if part.schedule is not None]
    return ScheduleTrace.of_rows(traces) if len(traces) == len(parts) else None


def _joined_blocks(parts: Sequence[Trajectory]) -> Int64[Tensor, "B L"] | None:
    recorded = [part.block_of for part in parts if part.block_of is not None]
    return torch.cat(recorded) if len(recorded) == len(parts) else None


def _joined_entropies(parts: Sequence[Trajectory], steps: int) -> Float64[Tensor, "B S"] | None:
    measured = [part.entropy for part in parts if part.entropy is not None]
    if len(measured) < len(parts):
        return None
    return torch.cat([pad(entropy, (0, steps - entropy.shape[1]), value=float("nan")) for entropy in measured])


def _joined_predictions(parts: Sequence[Trajectory], steps: int) -> Predictions | None:
    recorded = [(part, part.predictions) for part in parts if part.predictions is not None]
    if len(recorded) < len(parts):
        return None
    missing = [steps - part.num_steps for part, _ in recorded]
    finals = [part.tokens[:, None].expand(-1, more, -1) for (part, _), more in zip(recorded, missing, strict=True)]
    tokens = [torch.cat([made.tokens, final], dim=1) for (_, made), final in zip(recorded, finals, strict=True)]
    logq = [pad(made.logq, (0, 0, 0, more)) for (_, made), more in zip(recorded, missing, strict=True)]
    return Predictions(torch.cat(tokens), torch.cat(logq))
