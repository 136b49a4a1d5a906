"""How good each open position is: the order in which a sampler writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dllm_rl import rng
from dllm_rl.diffusion import ledger
from dllm_rl.diffusion.trajectory import Exactness
from dllm_rl.diffusion.transform import Transform
from dllm_rl.samplers.propose import Draw, Proposal


@runtime_checkable
class Score(Protocol):
    """Gives each open position a number; a selection keeps the highest."""

    exactness: ClassVar[Exactness]
    """What the log-probability of a rollout in this order is."""
    reads_draw: ClassVar[bool]
    """True if the score depends on the token drawn. Otherwise tokens are drawn at the chosen positions only."""

    def __call__(self, proposal: Proposal, draw: Draw | None) -> Float[Tensor, " T"]: ...

    def selection_logp(
        self,
        proposal: Proposal,
        transform: Transform,
        score: Float[Tensor, " T"],
        chosen: Bool[Tensor, " T"],
        num_rows: int,
    ) -> Float64[Tensor, " B"]:
        """Log-probability of each row's choice given the tokens drawn there, nats."""
        ...


def _nothing(proposal: Proposal, num_rows: int) -> Float64[Tensor, " B"]:
    return torch.zeros(num_rows, dtype=torch.float64, device=proposal.row.device)


def _count(row: Int64[Tensor, " T"], num_rows: int) -> Int64[Tensor, " B"]:
    return torch.bincount(row, minlength=num_rows)


@dataclass(frozen=True, slots=True)
class MaxProbability:
    """Log-probability of the likeliest permitted token at temperature 1: known before anything is drawn.

    The order is then a function of the canvas, and one token per step leaves an exact model's joint distribution as it
    is; the log-probability of a rollout is the sum over its tokens.
    """

    forbidden_ids: tuple[int, ...]

    exactness: ClassVar[Exactness] = "exact"
    reads_draw: ClassVar[bool] = False

    def __call__(self, proposal: Proposal, draw: Draw | None) -> Float[Tensor, " T"]:
        permitted = Transform(forbidden_ids=self.forbidden_ids)
        return torch.cat([permitted.log_probs(part.logits).amax(dim=-1) for part in proposal.split()])

    def selection_logp(
        self,
        proposal: Proposal,
        transform: Transform,
        score: Float[Tensor, " T"],
        chosen: Bool[Tensor, " T"],
        num_rows: int,
    ) -> Float64[Tensor, " B"]:
        return _nothing(proposal, num_rows)


@dataclass(frozen=True, slots=True)
class RandomOrder:
    """A fresh uniform number per position and step."""

    exactness: ClassVar[Exactness] = "exact"
    reads_draw: ClassVar[bool] = False

    def __call__(self, proposal: Proposal, draw: Draw | None) -> Float[Tensor, " T"]:
        return rng.uniform(rng.fold(proposal.key, "order"), 1)[:, 0]

    def selection_logp(
        self,
        proposal: Proposal,
        transform: Transform,
        score: Float[Tensor, " T"],
        chosen: Bool[Tensor, " T"],
        num_rows: int,
    ) -> Float64[Tensor, " B"]:
        return ledger.uniform_subset_logp(_count(proposal.row, num_rows), _count(proposal.row[chosen], num_rows))


@dataclass(frozen=True, slots=True)
class DrawnProbability:
    """Log-probability of the token drawn, in the full softmax at temperature 1, whatever it was drawn from.

    LLaDA's "low confidence" order. It prefers positions that happened to draw a likely token, so it tilts the
    distribution of the text at any temperature above 0; the likelihood of a rollout needs the F term.

    Source: Nie et al., https://arxiv.org/abs/2502.09992, generate.py. Confidence is float32 here, whatever the weights.
    """

    ignored_ids: tuple[int, ...] = ()
    """Ids left out of the softmax: where one was drawn, the score is minus infinity."""

    exactness: ClassVar[Exactness] = "exact_with_F"
    reads_draw: ClassVar[bool] = True

    def of_tokens(self, proposal: Proposal) -> Float[Tensor, "T V"]:
        """The score of every token that could have been drawn."""
        return Transform(forbidden_ids=self.ignored_ids).log_probs(proposal.logits)

    def __call__(self, proposal: Proposal, draw: Draw | None) -> Float[Tensor, " T"]:
        assert draw is not None, "this score reads the draw"
        return proposal.gather(self.of_tokens, draw.token)

    def selection_logp(
        self,
        proposal: Proposal,
        transform: Transform,
        score: Float[Tensor, " T"],
        chosen: Bool[Tensor, " T"],
        num_rows: int,
    ) -> Float64[Tensor, " B"]:
        bar = ledger.weakest_chosen(score, chosen, proposal.row, proposal.index, num_rows)
        total = _nothing(proposal, num_rows)
        for part in proposal.select(~chosen).split():
            logq = transform.log_probs(part.logits.to(torch.float64))
            losing = ledger.losing_logp(logq, self.of_tokens(part), bar, part.row, part.index)
            total = total.index_add(0, part.row, losing)
        return total
