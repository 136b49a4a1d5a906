"""WINO's second thoughts: what was written and does not hold up to a copy that cannot see it is hidden again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.revise.base import Reads, Revision, probability_of
from dllm_rl.samplers.select import highest

ACCEPTED = "wino_accepted"
"""How many positions each row's last step wrote."""


@dataclass(frozen=True, slots=True)
class Wino:
    """Hides tokens of the open block whose shadow gives them too little, the least probable first.

    Only in steps that write more than one, and fewer than the step before wrote. So n steps leave at least n positions
    written, and a block of n takes at most n forwards. Tokens are checked from the step after the one that wrote them.
    What is hidden follows from the canvas, the network and the log: draws left out have no part in it.

    Needs a model that can be told who looks at whom, and no cache.

    Source: Hong et al. (WINO), https://arxiv.org/abs/2507.18578, algorithm 1 and the published decoding.py. The code
    starts each block with an allowance of 30, when nothing is written yet that could be hidden: not needed here.
    """

    probability: float
    """What the full softmax at the shadow must give a token for it to stay; 0 lets all stay."""

    reads: ClassVar[Reads] = "shadow"

    def __call__(self, before: Canvas, after: Canvas, opinion: Proposal) -> Revision:
        shape = before.hidden.shape
        accepted = (before.hidden & ~after.hidden).sum(dim=1)
        sure = probability_of(opinion, before.completion[opinion.row, opinion.index])
        doubted = opinion.dense(sure < self.probability, shape)
        fewer_than_before = before.memory.get(ACCEPTED, torch.zeros_like(accepted)) - 1
        most = torch.where(accepted > 1, fewer_than_before, 0)
        remask = highest(opinion.dense(-sure, shape), doubted, most)
        return Revision(remask, torch.zeros_like(after.finished), memory={ACCEPTED: accepted})
