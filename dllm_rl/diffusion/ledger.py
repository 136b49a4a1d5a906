"""Log-probability of what a sampler step did: which positions it chose, given how it scores and selects them.

The tokens' part of a step is the sum of their log-probabilities; the functions here give the rest. They are
differentiable in the log-probabilities, for a recorder to evaluate and for an algorithm to learn from.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor


def uniform_subset_logp(eligible: Int64[Tensor, " B"], chosen: Int64[Tensor, " B"]) -> Float64[Tensor, " B"]:
    """Log-probability of one subset when all subsets of its size are equally likely: -log C(eligible, chosen)."""
    n, k = eligible.to(torch.float64), chosen.to(torch.float64)
    return torch.lgamma(k + 1) + torch.lgamma(n - k + 1) - torch.lgamma(n + 1)


class Bar(NamedTuple):
    """The weakest choice of each row: what every position left out fell short of."""

    score: Float[Tensor, " B"]
    place: Int64[Tensor, " B"]
    """Where it is; of equals, the one that would have been chosen last."""


def weakest_chosen(
    score: Float[Tensor, " T"],
    chosen: Bool[Tensor, " T"],
    row: Int64[Tensor, " T"],
    index: Int64[Tensor, " T"],
    num_rows: int,
) -> Bar:
    """The bar that a selection of the highest scores set, ties broken by the lowest index.

    Args:
        score: of T open positions.
        row: of each position, from 0 to `num_rows` - 1.
        index: of each position within its row.
    """
    lowest = torch.full((num_rows,), float("inf"), dtype=score.dtype, device=score.device)
    lowest = lowest.scatter_reduce(0, row[chosen], score[chosen], "amin")
    last = torch.full((num_rows,), -1, dtype=torch.int64, device=score.device)
    tied = chosen & (score == lowest[row])
    return Bar(lowest, last.scatter_reduce(0, row[tied], index[tied], "amax"))


def losing_logp(
    logq: Float[Tensor, "U V"],
    score: Float[Tensor, "U V"],
    bar: Bar,
    row: Int64[Tensor, " U"],
    index: Int64[Tensor, " U"],
) -> Float[Tensor, " U"]:
    """Log F: the probability that a position left out drew a token whose score stays below its row's bar.

    When positions are chosen by the score of the token drawn there, the draws thrown away matter: the probability of a
    step is that of the tokens written times the probability that every other position drew something weaker,
    F_j = sum of q_j(v) over the tokens v with score s_j(v) below the bar. Exact for any selection that keeps a fixed
    number of highest scores. Leaving it out makes probabilities of trajectories sum to more than 1.

    Args:
        logq: log-probabilities of the distribution drawn from, nats, at the U positions left out.
        score: what each token would have scored there; never carries gradient.

    Source: our derivation; no published loss of trajectories has this term. The set summed over is piecewise constant
    in the parameters, so the gradient flows through `logq` alone.
    """
    level = bar.score[row, None]
    loses = (score < level) | ((score == level) & (index > bar.place[row])[:, None])
    return logq.masked_fill(~loses, float("-inf")).logsumexp(dim=-1)
