"""What a revising rule is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from dllm_rl.samplers.canvas import NO_MEMORY, Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.quota import Quota
from dllm_rl.samplers.select import highest

Reads = Literal["nothing", "written", "shadow"]
"""What a rule wants to know of the written positions of the block: nothing, what the network says of them in the same
forward, or what it says of a masked copy of each that cannot see it."""


@dataclass(frozen=True, slots=True)
class Revision:
    """Changes to a canvas, after a step has written to it."""

    remask: Bool[Tensor, "B L"]
    unsettled: Bool[Tensor, " B"]
    """Rows that want another turn in this block though it is full."""
    edit: Bool[Tensor, "B L"] | None = None
    token: Int64[Tensor, "B L"] | None = None
    """The new tokens where `edit`; not drawn, so they have no log-probability of their own."""
    logp: Float64[Tensor, " B"] | None = None
    """Log-probability of the changes given everything before, nats; None for 0."""
    memory: Mapping[str, Tensor] = field(default_factory=lambda: NO_MEMORY)
    """What the rule wants to find on the canvas at the next step, batch-first."""


@runtime_checkable
class Revise(Protocol):
    """Changes what is written: editable positions of the open block, and of those before it if it says so.

    What is hidden again before the open block is written again together with it. No cache need be told: every policy
    has the columns recomputed whose token changed.
    """

    reads: ClassVar[Reads]

    def __call__(self, before: Canvas, after: Canvas, opinion: Proposal) -> Revision:
        """Revise.

        Args:
            before: the canvas that the network saw.
            after: the same after this step's writes.
            opinion: what the network said of positions that were written before, as `reads` asks for; else empty.
        """
        ...


def probability_of(opinion: Proposal, token: Int64[Tensor, " T"]) -> Float64[Tensor, " T"]:
    """What the full softmax at temperature 1 gives one token at each position."""
    logp = opinion.gather(lambda part: torch.log_softmax(part.logits.to(torch.float64), dim=-1), token)
    return logp.exp()


@dataclass(frozen=True, slots=True)
class Nothing:
    """What is written stays."""

    reads: ClassVar[Reads] = "nothing"

    def __call__(self, before: Canvas, after: Canvas, opinion: Proposal) -> Revision:
        return Revision(torch.zeros_like(after.hidden), torch.zeros_like(after.finished))


NOTHING = Nothing()


def remask_beyond(
    quota: Quota, before: Canvas, score: Float64[Tensor, "B L"], candidates: Bool[Tensor, "B L"]
) -> Revision:
    """What is left when the quota of a step stands, for rules that write every open position and think again.

    As many `candidates` are hidden as the step would have left open had it written its quota, those of the lowest
    scores; of equals the lowest index is kept. Once a block's quotas are used up, nothing is.
    """
    left = before.eligible.sum(dim=1) - quota(before)
    kept = highest(score, candidates, candidates.sum(dim=1) - left)
    return Revision(candidates & ~kept, torch.zeros_like(before.finished))
