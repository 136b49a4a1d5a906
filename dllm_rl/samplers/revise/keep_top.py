"""Remasking by what the network now thinks of every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.quota import Quota
from dllm_rl.samplers.revise.base import Reads, Revision, remask_beyond
from dllm_rl.samplers.score import DrawnScore, Score


@dataclass(frozen=True, slots=True)
class KeepTop:
    """Score every position of the block, written or hidden, in the same forward; keep the highest, hide the rest.

    To be used with `select.Everything` and the same score: each step writes every open position, and as many tokens
    stay as the quotas up to it say. How many are hidden is fixed beforehand, which is not: a token stays only as long
    as the network stands by it. For models trained to judge what is written; to others a token they see looks sure.

    Source: Huang et al. (RemeDi), https://arxiv.org/abs/2509.23653, inference: the score is that of its unmasking
    policy, the quota linear.
    """

    quota: Quota
    """Tokens that each step of a block adds for good, though not which."""
    score: Score
    """That of the sampler. One that reads the token drawn reads, where one is written, that."""

    reads: ClassVar[Reads] = "written"

    def __call__(self, before: Canvas, after: Canvas, opinion: Proposal) -> Revision:
        stands = opinion.dense(self._of_written(before, opinion).to(torch.float64), after.hidden.shape)
        score = torch.where(before.eligible, after.confidence, stands)
        return remask_beyond(self.quota, before, score, after.window)

    def _of_written(self, canvas: Canvas, opinion: Proposal) -> Float[Tensor, " T"]:
        score = self.score
        if isinstance(score, DrawnScore):
            token = canvas.completion[opinion.row, opinion.index]
            return opinion.gather(lambda part: score.of_tokens(part, canvas), token)
        return score.of_positions(opinion, canvas)
