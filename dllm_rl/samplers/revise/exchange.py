"""Draft a block, exchange its least sure tokens again and again, then fill it: ReMDM as it was ported to LLaDA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.revise.base import Reads, Revision
from dllm_rl.samplers.select import highest


@dataclass(frozen=True, slots=True)
class Phases:
    """What each turn of a block is for, and how many positions it writes; each row by what it had to write."""

    ratio: float
    """Share of a block that is drafted, rounded down."""
    count: int
    """Positions written by a turn before and after the loop; the draft's last turn may have fewer left."""
    exchanged: int
    """Tokens hidden and written by each round of the loop; all of the draft if it has fewer."""
    rounds: int
    turns: int
    """Of each round; the last of them writes."""

    def drafted(self, canvas: Canvas) -> Int64[Tensor, " B"]:
        return (self.ratio * canvas.opening.to(torch.float64)).floor().to(torch.int64)

    def round_of(self, canvas: Canvas) -> Int64[Tensor, " B"]:
        """Turns of the loop that are done, negative before it."""
        return canvas.turn - (self.drafted(canvas) + self.count - 1) // self.count

    def in_loop(self, canvas: Canvas) -> Bool[Tensor, " B"]:
        """Rows that stand before a turn of the loop; a row without a draft has none."""
        done = self.round_of(canvas)
        return (done >= 0) & (done < self.rounds * self.turns) & (self.drafted(canvas) > 0)

    def begins(self, canvas: Canvas) -> Bool[Tensor, " B"]:
        """Rows that stand before the first turn of a round."""
        return self.in_loop(canvas) & (self.round_of(canvas) % self.turns == 0)

    def hidden_by_round(self, canvas: Canvas) -> Int64[Tensor, " B"]:
        return self.drafted(canvas).clamp(max=self.exchanged)

    def __call__(self, canvas: Canvas) -> Int64[Tensor, " B"]:
        drafted = self.drafted(canvas)
        left = drafted - canvas.turn * self.count
        draft = torch.where(left > 0, left.clamp(max=self.count), self.count)
        writes = (self.round_of(canvas) + 1) % self.turns == 0
        loop = torch.where(writes, self.hidden_by_round(canvas), 0)
        return torch.where(self.in_loop(canvas), loop, draft)


@dataclass(frozen=True, slots=True)
class ExchangeByStored:
    """Before each round the tokens are hidden that were least probable when they were written.

    Source: https://github.com/guanghanwang/ReMDM-LLaDA, llada_remdm_sample. There the draft is counted in steps and not
    in tokens, which differs when a step writes several.
    """

    phases: Phases
    """With rounds of one turn."""

    reads: ClassVar[Reads] = "nothing"

    def __call__(self, before: Canvas, after: Canvas, opinion: Proposal) -> Revision:
        written = after.window & ~after.hidden & self.phases.begins(after)[:, None]
        remask = highest(-after.logp, written, self.phases.hidden_by_round(after))
        return Revision(remask, torch.zeros_like(after.finished))


@dataclass(frozen=True, slots=True)
class ExchangeByCurrent:
    """Each round begins with a forward that hides the tokens that the network now finds least probable.

    A token is judged as the network sees it in its place, not hidden. Such a forward writes nothing.

    Source: Huang et al. (PC-Sampler), https://arxiv.org/abs/2508.13021, generate_with_remdm.
    """

    phases: Phases
    """With rounds of two turns."""

    reads: ClassVar[Reads] = "written"

    def __call__(self, before: Canvas, after: Canvas, opinion: Proposal) -> Revision:
        token = before.completion[opinion.row, opinion.index]
        logp = opinion.gather(lambda part: torch.log_softmax(part.logits.to(torch.float64), dim=-1), token)
        written = before.window & ~before.hidden & self.phases.begins(before)[:, None]
        remask = highest(opinion.dense(-logp, before.hidden.shape), written, self.phases.hidden_by_round(before))
        return Revision(remask, self.phases.in_loop(after))
