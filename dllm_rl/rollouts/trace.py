"""A rollout with what made it, in a form that JSON can hold. `trace_file` writes and reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import inf, isnan, nan
from typing import Annotated, Literal

import torch
from jaxtyping import Float64, Int64
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, PlainSerializer
from torch import Tensor

from dllm_rl.diffusion.schedule import ScheduleTrace
from dllm_rl.diffusion.trajectory import Events, Exactness, Op, Trajectory
from dllm_rl.diffusion.transform import Transform

_INFINITIES = {"Infinity": inf, "-Infinity": -inf}


def _number(value: object) -> float:
    if value is None:
        return nan
    if isinstance(value, str) and value in _INFINITIES:
        return _INFINITIES[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError('expected a number, null (not a number), "Infinity" or "-Infinity"')
    return float(value)


def _plain(value: float) -> float | str | None:
    """JSON has numbers only for finite values."""
    if isnan(value):
        return None
    return value if abs(value) < inf else "Infinity" if value > 0 else "-Infinity"


Number = Annotated[float, BeforeValidator(_number), PlainSerializer(_plain)]
"""A float64 that survives the way through JSON: null is not-a-number."""
Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=True)


class SamplerFacts(_Part):
    """The sampler as it was asked for; `steps` and `block_length` are None where it chose for itself."""

    name: str
    gen_length: Annotated[int, Field(ge=1, lt=2**31)]
    steps: int | None
    block_length: int | None
    temperature: float
    cfg_scale: float
    stop_at_eos: bool
    cache: str
    options: dict[str, JsonValue]
    driver: str | None = None
    """What ran the sampler, with its options; None for one rollout per prompt. `nfe` is that of a row's own path."""


class TransformFacts(_Part):
    """What was done to logits before tokens were drawn; the fields of `Transform`."""

    temperature: Annotated[float, Field(ge=0, lt=inf)]
    cfg_scale: float
    forbidden_ids: list[Count]
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    top_k: Annotated[int, Field(ge=1)] | None


class ScheduleFacts(_Part):
    """The policy that decided how to take every step; see `ScheduleTrace`."""

    learned: list[str]
    """What it decided, one action each."""
    sigma: Annotated[float, Field(ge=0, lt=inf)]


class DecisionColumns(_Part):
    """What a schedule policy was shown and decided before each of a row's forwards; `ScheduleTrace` by step.

    For every forward of the longest row; zeros after the row's own.
    """

    features: list[list[Number]]
    action: list[list[Number]]
    logp: list[Number]
    commit: list[Number]
    temperature: list[Number] | None
    cfg_scale: list[Number] | None
    ranking_temperature: list[Number] | None


class RowFacts(_Part):
    """One prompt and its completion. Log-probabilities in nats."""

    prompt: list[Count]
    prompt_text: str
    completion: str
    """Up to the first end of sequence, without special tokens."""
    nfe: Count
    behaviour_logp: Number
    """See `Trajectory.behaviour_logp`."""
    selection_logp: list[Number]
    """For every forward of the longest row."""
    entropy: list[Number] | None
    key: str
    """In decimal; a number beyond 2^53 is not safe in JSON."""
    blocks: list[Annotated[int, Field(ge=1)]] | None
    """Lengths of the blocks, in order; None where they are not known."""
    decisions: DecisionColumns | None = None
    """None where no schedule policy decided how to take the steps."""


class EventColumns(_Part):
    """`Events` by column; `op` as its number."""

    row: list[Count]
    step: list[Count]
    position: list[Count]
    op: list[Annotated[int, Field(ge=0, le=max(Op))]]
    token: list[Count]
    logq: list[Number]
    logp: list[Number]
    conf: list[Number]


class Trace(_Part):
    """A rollout and what made it: everything its file holds."""

    format: Literal["dllm-rl trace"] = "dllm-rl trace"
    version: Literal[2] = 2
    """2 keeps the decisions of a schedule policy; a file of version 1 has none and is otherwise the same."""
    model: str
    """As it was named by whoever ran it; never a path that was looked up."""
    sampler: SamplerFacts
    seed: int
    transform: TransformFacts
    exactness: Exactness
    prompt_length: Count
    """P: columns of the longest prompt."""
    gen_length: Annotated[int, Field(ge=1, lt=2**31)]
    """L."""
    mask_id: Count
    eos_ids: list[Count]
    update: int
    """Version of the weights."""
    rows: list[RowFacts]
    events: EventColumns
    texts: dict[str, str]
    """What each token id that occurs stands for."""
    planner_temperature: float | None = None
    """See `Trajectory.planner_temperature`."""
    schedule: ScheduleFacts | None = None
    """None where no schedule policy decided how to take the steps."""

    def trajectory(self) -> Trajectory:
        """The rollout itself."""
        entropy = [row.entropy for row in self.rows if row.entropy is not None]
        blocks = [row.blocks for row in self.rows if row.blocks is not None]
        return Trajectory(
            prompts=[row.prompt for row in self.rows],
            gen_length=self.gen_length,
            events=Events(
                **{
                    part.name: torch.tensor(getattr(self.events, part.name), dtype=_COLUMN_TYPES[part.name])
                    for part in fields(Events)
                }
            ),
            selection_logp=_rectangle([row.selection_logp for row in self.rows]),
            nfe=[row.nfe for row in self.rows],
            keys=torch.tensor([int(row.key) for row in self.rows], dtype=torch.int64),
            transform=Transform(**self.transform.model_dump() | {"forbidden_ids": tuple(self.transform.forbidden_ids)}),
            exactness=self.exactness,
            mask_id=self.mask_id,
            eos_ids=tuple(self.eos_ids),
            update=self.update,
            entropy=_rectangle(entropy) if entropy else None,
            schedule=None if self.schedule is None else _schedule(self.schedule, self.rows),
            block_of=_block_of(blocks) if len(blocks) == len(self.rows) else None,
            planner_temperature=self.planner_temperature,
        )


_COLUMN_TYPES = {
    part.name: torch.float64 if part.name in ("logq", "logp", "conf") else torch.int64 for part in fields(Events)
}


def _rectangle(rows: Sequence[Sequence[float]]) -> Float64[Tensor, "B S"]:
    return torch.tensor(rows, dtype=torch.float64)


def _block_of(lengths: Sequence[Sequence[int]]) -> Int64[Tensor, "B L"]:
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths])


def _schedule(facts: ScheduleFacts, given: Sequence[RowFacts]) -> ScheduleTrace:
    decided = [row.decisions for row in given if row.decisions is not None]
    columns = {name: [getattr(row, name) for row in decided] for name in DecisionColumns.model_fields}
    tensors = {
        name: None if rows[0] is None else torch.tensor(rows, dtype=torch.float64) for name, rows in columns.items()
    }
    return ScheduleTrace(**tensors, sigma=facts.sigma, learned=tuple(facts.learned))  # type: ignore[arg-type]


def _decisions(schedule: ScheduleTrace, row: int) -> DecisionColumns:
    parts = {name: getattr(schedule, name) for name in DecisionColumns.model_fields}
    return DecisionColumns.model_validate(
        {name: None if part is None else part[row].tolist() for name, part in parts.items()}
    )


def trace_of(
    trajectory: Trajectory,
    *,
    model: str,
    sampler: SamplerFacts,
    seed: int,
    prompt_texts: Sequence[str],
    completions: Sequence[str],
    texts: Mapping[int, str],
) -> Trace:
    """What is to be written about a rollout.

    Args:
        model: as the user named it.
        completions: of the rows, as text.
        texts: of every token id in prompts and events; see `token_ids`.
    """
    events, transform = trajectory.events, trajectory.transform
    behaviour, selection = trajectory.behaviour_logp.tolist(), trajectory.selection_logp.tolist()
    entropy = None if trajectory.entropy is None else trajectory.entropy.tolist()
    blocks, schedule = trajectory.block_of, trajectory.schedule
    return Trace(
        model=model,
        sampler=sampler,
        seed=seed,
        transform=TransformFacts(
            temperature=transform.temperature,
            cfg_scale=transform.cfg_scale,
            forbidden_ids=list(transform.forbidden_ids),
            top_p=transform.top_p,
            top_k=transform.top_k,
        ),
        exactness=trajectory.exactness,
        prompt_length=trajectory.prompt_length,
        gen_length=trajectory.gen_length,
        mask_id=trajectory.mask_id,
        eos_ids=list(trajectory.eos_ids),
        update=trajectory.update,
        planner_temperature=trajectory.planner_temperature,
        schedule=None if schedule is None else ScheduleFacts(learned=list(schedule.learned), sigma=schedule.sigma),
        rows=[
            RowFacts(
                prompt=list(prompt),
                prompt_text=prompt_texts[row],
                completion=completions[row],
                nfe=trajectory.nfe[row],
                behaviour_logp=behaviour[row],
                selection_logp=selection[row],
                entropy=None if entropy is None else entropy[row],
                key=str(int(trajectory.keys[row])),
                blocks=None if blocks is None else blocks[row].bincount().tolist(),
                decisions=None if schedule is None else _decisions(schedule, row),
            )
            for row, prompt in enumerate(trajectory.prompts)
        ],
        events=EventColumns(**{part.name: getattr(events, part.name).tolist() for part in fields(Events)}),
        texts={str(token): texts[token] for token in token_ids(trajectory)},
    )


def token_ids(trajectory: Trajectory) -> list[int]:
    """Every id that occurs in prompts and events, once."""
    return sorted({*trajectory.events.token.tolist(), *(token for prompt in trajectory.prompts for token in prompt)})
