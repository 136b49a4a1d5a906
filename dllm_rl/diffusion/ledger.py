"""Log-probability of what a sampler step did: which positions it chose, given how it scores and selects them.

The tokens' part of a step is the sum of their log-probabilities; the functions here give the rest. They are
differentiable in the log-probabilities, for a recorder to evaluate and for an algorithm to learn from.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import logsigmoid


def uniform_subset_logp(eligible: Int64[Tensor, " B"], chosen: Int64[Tensor, " B"]) -> Float64[Tensor, " B"]:
    """Log-probability of one subset when all subsets of its size are equally likely: -log C(eligible, chosen)."""
    n, k = eligible.to(torch.float64), chosen.to(torch.float64)
    return torch.lgamma(k + 1) + torch.lgamma(n - k + 1) - torch.lgamma(n + 1)


def coins_logp(
    log_heads: Float[Tensor, "B L"],
    log_tails: Float[Tensor, "B L"],
    chosen: Bool[Tensor, "B L"],
    eligible: Bool[Tensor, "B L"],
) -> Float[Tensor, " B"]:
    """Log-probability that independent coins, one per eligible position, fall heads exactly where `chosen`."""
    falls = torch.where(chosen, log_heads, log_tails)
    return falls.masked_fill(~eligible, 0.0).sum(dim=1)


def forced_coins_logp(
    logits: Float[Tensor, "B L"], chosen: Bool[Tensor, "B L"], eligible: Bool[Tensor, "B L"]
) -> Float[Tensor, " B"]:
    """Log-probability of `chosen` when each eligible position fires with probability sigmoid(logit), and the likeliest
    one (of equals the lowest index) is forced when none does.

    Two ways lead to the likeliest position alone, that it fired and that nothing did, so its own coin drops out:
    P({a}) = prod over j != a of (1 - p_j). The probabilities of all subsets then sum to 1. A published planner loss
    leaves the forced step out, or counts its coin as if it had fired.

    Source: our derivation; the rule is that of dUltra, https://arxiv.org/abs/2512.21446.
    """
    likeliest = logits.masked_fill(~eligible, float("-inf")).argmax(dim=1)  # the first of equals
    alone = torch.zeros_like(chosen).scatter(1, likeliest[:, None], True) & eligible
    only_the_likeliest = (chosen == alone).all(dim=1)
    counted = eligible & ~(only_the_likeliest[:, None] & alone)
    return coins_logp(logsigmoid(logits), logsigmoid(-logits), chosen, counted)


def plackett_luce_logp(
    logits: Float[Tensor, "B L"], rank: Int64[Tensor, "B L"], chosen: Bool[Tensor, "B L"], eligible: Bool[Tensor, "B L"]
) -> Float[Tensor, " B"]:
    """Log-probability of choosing positions one after the other without replacement, each by a softmax of what is left.

    Args:
        rank: when each chosen position was taken, counted from 0; not read elsewhere.

    Source: Plackett (1975); the law of the highest logits after Gumbel noise (Kool et al.,
    https://arxiv.org/abs/1903.06059, section 2.2).
    """
    never = logits.shape[1]
    rank = rank.masked_fill(~chosen, never)  # what is not chosen is left to the end
    order = rank.argsort(dim=1, stable=True)
    inside = eligible.gather(1, order)
    ordered = logits.gather(1, order).masked_fill(~inside, float("-inf"))
    left = ordered.flip(1).logcumsumexp(dim=1).flip(1)
    taken = chosen.gather(1, order)
    return (ordered - left).masked_fill(~taken, 0.0).sum(dim=1)


def gaussian_logp(
    action: Float[Tensor, "*batch A"], mean: Float[Tensor, "*batch A"], sigma: float
) -> Float[Tensor, "*batch"]:
    """Log-density of actions that were drawn independently around their means, nats.

    Raises:
        ValueError: sigma is not above 0, where there is no density.
    """
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}; actions that were not drawn have no density")
    return (-0.5 * ((action - mean) / sigma).square() - math.log(sigma * math.sqrt(2 * math.pi))).sum(-1)


class Bar(NamedTuple):
    """What the score of a position left out must stay below, by level and, at the same level, by place."""

    level: Float[Tensor, "B L"]
    """Minus infinity can never be stayed below; plus infinity always is."""
    place: Int64[Tensor, "B L"]
    """A position whose score equals the level was left out if its index is beyond this."""


def weakest_chosen(score: Float[Tensor, "B L"], chosen: Bool[Tensor, "B L"]) -> Bar:
    """The bar that a selection of the highest scores set, ties broken by the lowest index.

    Where a row chose nothing there is nothing to say: its level is plus infinity.
    """
    level = score.masked_fill(~chosen, float("inf")).amin(dim=1, keepdim=True)
    index = torch.arange(score.shape[1], device=score.device)
    place = index.masked_fill(~(chosen & (score == level)), -1).amax(dim=1, keepdim=True)
    return Bar(level.expand_as(score), place.expand_as(chosen))


def below(level: Float[Tensor, "B L"]) -> Bar:
    """The bar of a rule that takes every score of at least `level`."""
    return Bar(level, torch.full_like(level, level.shape[1], dtype=torch.int64))


def lower(a: Bar, b: Bar) -> Bar:
    """Both bars at once."""
    first = (a.level < b.level) | ((a.level == b.level) & (a.place > b.place))
    return Bar(torch.where(first, a.level, b.level), torch.where(first, a.place, b.place))


def where(condition: Bool[Tensor, "#B #L"], a: Bar, b: Bar) -> Bar:
    """Bar `a` where the condition holds, else `b`."""
    return Bar(torch.where(condition, a.level, b.level), torch.where(condition, a.place, b.place))


def losing_logp(
    logq: Float[Tensor, "U V"],
    score: Float[Tensor, "U V"],
    level: Float[Tensor, " U"],
    place: Int64[Tensor, " U"],
    index: Int64[Tensor, " U"],
) -> Float[Tensor, " U"]:
    """Log F: the probability that a position left out drew a token whose score stays below its bar.

    When positions are chosen by the score of the token drawn there, the draws thrown away matter: the probability of a
    step is that of the tokens written times the probability that every other position drew something weaker,
    F_j = sum of q_j(v) over the tokens v with score s_j(v) below the bar. Exact for every rule whose choice is settled
    by such bars. Leaving it out makes probabilities of trajectories sum to more than 1.

    Args:
        logq: log-probabilities of the distribution drawn from, nats, at the U positions left out.
        score: what each token would have scored there; never carries gradient.
        level, place: the bar of each position.
        index: of each position within its row.

    Source: our derivation; no published loss of trajectories has this term. The set summed over is piecewise constant
    in the parameters, so the gradient flows through `logq` alone.
    """
    loses = (score < level[:, None]) | ((score == level[:, None]) & (index > place)[:, None])
    return logq.masked_fill(~loses, float("-inf")).logsumexp(dim=-1)
