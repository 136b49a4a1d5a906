"""LLaDA2.1's second thoughts: written tokens are replaced where the network is sure of another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm_rl.diffusion.transform import Transform
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal, draw
from dllm_rl.samplers.revise.base import Reads, Revision, probability_of

PASSES = "edit_only_passes"
"""Forwards each row has made since its block was full."""


@dataclass(frozen=True, slots=True)
class TokenToToken:
    """Replaces tokens of the open block by the likeliest one, if that is another and probable enough.

    Tokens are looked at from the step after the one that wrote them, so a full block gets passes that only edit, until
    one changes nothing or there were `post_steps`. A block that is left is not edited any more: caches of finished
    blocks stay exact. An edit is not drawn, at any temperature: it follows from the canvas and the network, so that its
    log-probability is 0. For models trained to correct tokens; what others say of a token they can see means nothing.

    Source: LLaDA2.1, https://arxiv.org/abs/2602.08676; SGLang, srt/dllm/algorithm/joint_threshold.py, which is greedy.
    Diffusers edits by draws at temperatures above 0, which a likelihood would have to count wherever one was rejected.
    SGLang's 17th pass, which changes nothing, is not made here, and the mask never replaces a token.
    """

    probability: float
    """What the full softmax must give the other token, exclusive; 1 edits nothing and makes no further pass."""
    post_steps: int
    """At most so many passes over a full block."""
    forbidden_ids: tuple[int, ...]
    """Never the other token."""

    reads: ClassVar[Reads] = "written"

    def __call__(self, before: Canvas, after: Canvas, opinion: Proposal) -> Revision:
        shape = before.hidden.shape
        token = draw(opinion, Transform(temperature=0.0, forbidden_ids=self.forbidden_ids)).token
        differs = token != before.completion[opinion.row, opinion.index]
        edit = opinion.dense(differs & (probability_of(opinion, token) > self.probability), shape)
        writing = before.eligible.any(dim=1)
        passes = torch.where(writing, 0, before.memory.get(PASSES, torch.zeros_like(before.turn)) + 1)
        once_more = (writing | edit.any(dim=1)) & (passes < self.post_steps) & (self.probability < 1)
        nothing = torch.zeros_like(edit)
        return Revision(nothing, once_more, edit, opinion.dense(token, shape), memory={PASSES: passes})
