"""Remasking by the confidence that tokens were written with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.quota import Quota
from dllm_rl.samplers.revise.base import Reads, Revision, remask_beyond

Scope = Literal["canvas", "block"]
"""Where tokens are hidden again: in the open block and all before it, or in the open block only."""


@dataclass(frozen=True, slots=True)
class RunningConfidence:
    """Of all tokens written so far, hide those again that were written with the least confidence.

    To be used with `select.Everything`: each step writes every open position, and as many tokens stay as the quotas up
    to it say. A token that stays keeps the confidence it was written with; one that was hidden is drawn anew, with a
    new confidence, in the light of what stayed. So an early token can be revised as long as others are surer.

    The tokens of earlier blocks compete with those of the open one ("canvas"), and are then written again with it. With
    "block" what a finished block holds is final.

    Source: He et al. (MDPO), https://arxiv.org/abs/2508.13148, "running confidence remasking", and its
    mdlm_generation_utils.py, whose scope is the whole canvas. Deviations: the code knows a position that it must not
    hide by a stored confidence of 0, which it takes for 1, so a token of confidence 0 (a margin between equals) is
    never hidden, and a prompt may be when tokens reach 1. Here fixed tokens and prompts are no candidates. Equals go
    by position; the code leaves them to the sort.
    """

    quota: Quota
    """Tokens that each step of a block adds for good, though not which."""
    scope: Scope = "canvas"

    reads: ClassVar[Reads] = "nothing"

    def __call__(self, before: Canvas, after: Canvas, opinion: Proposal) -> Revision:
        within = after.window if self.scope == "block" else after.editable
        return remask_beyond(self.quota, before, after.confidence, within & ~after.hidden)
