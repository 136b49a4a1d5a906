"""Likelihoods from views: score each view's tokens, weigh, add.

The ELBO of a completion is the mean, over the orders in which its tokens can be revealed, of its log-probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dllm_rl.diffusion.corruption import CORRUPTORS, Corruptor
from dllm_rl.diffusion.denoiser import Denoiser, TokenScores
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.diffusion.transform import Transform
from dllm_rl.diffusion.views import Sequences, Views
from dllm_rl.rng import fold, sample_keys

_LONGEST_EXACT = 14


class ElboEstimate(NamedTuple):
    """Estimated ELBOs of B completions, nats per sequence."""

    value: Float64[Tensor, " B"]
    """Mean over the draws."""
    draws: Float64[Tensor, "B K"]
    """One value per view. Each is unbiased alone, except under `Complementary`, where the mean of a pair is."""
    std_error: Float64[Tensor, " B"]
    """Of `value`, by the formula for independent estimates: conservative for stratified levels and more so for
    balanced sets, over the means of pairs for corruptors that draw in pairs, NaN when there is a single one."""


def score_views(
    denoiser: Denoiser,
    sequences: Sequences,
    views: Views,
    *,
    views_per_forward: int,
    transform: Transform | None = None,
    entropy: bool = False,
) -> TokenScores:
    """Log-probabilities of the clean tokens at every view's scored positions, [R, N]; zero elsewhere.

    Of the views' own tokens, where they have some; and what the planner says of their open positions. Differentiable
    wherever the denoiser is. Under grad, every forward's graph is kept: to bound memory, call it on few views.

    Args:
        sequences: all of them; `views.row` points into them.
        views_per_forward: changes speed and memory, not the result.
        transform: the distribution to score under; None is the full softmax at temperature 1.
        entropy: whether to return entropies too.
    """
    groups = []
    for index in torch.split(torch.arange(len(views), device=views.row.device), views_per_forward):
        group, clean = views.select(index), sequences.select(views.row[index])
        groups.append(
            denoiser.score(
                group.canvas,
                clean.tokens if group.tokens is None else group.tokens,
                group.scored,
                clean.attend,
                transform,
                prompt=clean.prompt,
                entropy=entropy,
                open=group.open,
                temperature=group.temperature,
                cfg_scale=group.cfg_scale,
            )
        )
    entropies = [scores.entropy for scores in groups if scores.entropy is not None]
    plans = [scores.plan for scores in groups if scores.plan is not None]
    return TokenScores(
        torch.cat([scores.logp for scores in groups]),
        torch.cat(entropies) if entropies else None,
        torch.cat(plans) if plans else None,
    )


def elbo_draws(logp: Float[Tensor, "R N"], views: Views, num_sequences: int) -> Float64[Tensor, "B K"]:
    """Weighted sum of each view's token log-probs, nats, laid out by sequence and draw. Differentiable.

    Args:
        logp: scores of `views`; what it holds where nothing is scored does not matter.
        views: as a corruptor made them, the draws of a sequence side by side.

    Raises:
        ValueError: the views are not K per sequence, in order.
    """
    draws = len(views) // num_sequences
    if not torch.equal(views.row, torch.arange(num_sequences, device=views.row.device).repeat_interleave(draws)):
        raise ValueError(
            f"{len(views)} views over {num_sequences} sequences are not the same number for each, in order; "
            "pass all views that a corruptor made, unshuffled"
        )
    return (logp.double() * views.weight).masked_fill(~views.scored, 0.0).sum(-1).view(num_sequences, draws)


@torch.no_grad()
def elbo(
    model: Denoiser,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    num_draws: int = 8,
    corruptor: str | Corruptor = "fixed_count",
    seed: int = 0,
    sample_ids: Sequence[int] | None = None,
    views_per_forward: int = 16,
) -> ElboEstimate:
    """Monte Carlo estimate of log p(completion | prompt)'s lower bound: a sum over exactly the ids given, no gradient.

    A row's estimate depends on its ids, `seed` and its sample id, not on the rows beside it. Two models called with the
    same arguments see the same views. Not comparable across lengths, and no exact likelihood: see `exact_elbo`.

    Args:
        prompts: token ids, may be empty; nothing is added.
        completions: token ids, at least one each.
        num_draws: views per completion.
        corruptor: "fixed_count", "bernoulli", "antithetic", "complementary", "balanced", "fully_hidden" (one-step
            likelihood, not an ELBO), or a corruptor.
        seed: of the draws.
        sample_ids: what a row's draws are keyed by; default 0, 1, ..., so equal rows draw apart.
        views_per_forward: changes speed and memory, not the result.

    Raises:
        ValueError: a completion is empty, the numbers of rows differ, or the corruptor is unknown.

    Source: Nie et al., https://arxiv.org/abs/2502.09992, eq. 14.
    """
    sequences = sequences_from_ids(prompts, completions, _pad_id(model), model.device)
    ids = range(len(sequences)) if sample_ids is None else sample_ids
    if len(ids) != len(sequences):
        raise ValueError(f"{len(ids)} sample_ids for {len(sequences)} rows; expected one per row")
    keys = fold(sample_keys(seed, torch.tensor(ids, dtype=torch.int64, device=model.device)), "elbo")
    drawer = _corruptor(corruptor)
    views = drawer.views(sequences, num_draws, keys, model.spec.mask_id)
    scores = score_views(model, sequences, views, views_per_forward=views_per_forward)
    draws = elbo_draws(scores.logp, views, len(sequences))
    return ElboEstimate(draws.mean(-1), draws, _std_error(draws, drawer.draws_per_estimate))


@torch.no_grad()
def exact_elbo(model: Denoiser, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """The ELBO by enumeration of all 2^n - 1 hidden sets of the completion, nats: what `elbo` estimates.

    Raises:
        ValueError: the completion is empty, or longer than 14 tokens.
    """
    if not 0 < len(completion) <= _LONGEST_EXACT:
        raise ValueError(
            f"the completion has {len(completion)} tokens; enumeration takes 1 to {_LONGEST_EXACT}, use elbo for more"
        )
    sequences = sequences_from_ids([prompt], [completion], _pad_id(model), model.device)
    views = _every_view(sequences, model.spec.mask_id)
    scores = score_views(model, sequences, views, views_per_forward=64)
    return float(elbo_draws(scores.logp, views, 1).sum())


def _every_view(sequences: Sequences, mask_id: int) -> Views:
    """Every non-empty hidden set of one sequence's scored positions, weighted so that the views add up to the ELBO."""
    positions = sequences.scored[0].nonzero()[:, 0].tolist()
    n = len(positions)
    subsets = [subset for fewer in range(n) for subset in combinations(positions, fewer + 1)]
    hidden = torch.zeros(len(subsets), sequences.tokens.shape[1], dtype=torch.bool)
    weight = torch.zeros(hidden.shape, dtype=torch.float64)
    for view, subset in enumerate(subsets):
        hidden[view, list(subset)] = True
        weight[view, list(subset)] = 1.0 / (len(subset) * math.comb(n, len(subset)))
    row: Int64[Tensor, " R"] = torch.zeros(len(subsets), dtype=torch.int64)
    canvas = sequences.tokens.cpu().masked_fill(hidden, mask_id)
    return Views(canvas, hidden, weight, row).to(sequences.tokens.device)


def _std_error(draws: Float64[Tensor, "B K"], draws_per_estimate: int) -> Float64[Tensor, " B"]:
    estimates = draws.view(len(draws), -1, draws_per_estimate).mean(-1)
    count = draws.shape[1] // draws_per_estimate
    if count == 1:
        return torch.full_like(draws[:, 0], float("nan"))
    return estimates.std(-1) / math.sqrt(count)


def _corruptor(corruptor: str | Corruptor) -> Corruptor:
    if not isinstance(corruptor, str):
        return corruptor
    if corruptor not in CORRUPTORS:
        raise ValueError(f"corruptor is {corruptor!r}; expected one of {', '.join(CORRUPTORS)}")
    return CORRUPTORS[corruptor]()


def _pad_id(model: Denoiser) -> int:
    """Any id does: padding is not attended to."""
    return model.spec.eos_ids[0] if model.spec.eos_ids else model.spec.mask_id
