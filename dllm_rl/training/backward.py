"""The backward of every algorithm, one group of views at a time.

Memory is that of one group: scores are numbers first, the loss gives their coefficients, and the groups are scored
again with gradient, each back-propagating `(scores * coefficient).sum()` and freeing its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dllm_rl.algorithms.base import Algorithm, Batch, Loss, Scores
from dllm_rl.diffusion.denoiser import Denoiser, SchedulingDenoiser
from dllm_rl.diffusion.likelihood import score_views

GroupContext = Callable[[bool], AbstractContextManager[object]]
"""Entered around each group's forward and backward; the argument says whether it is the micro-batch's last."""


@dataclass(frozen=True, slots=True)
class Group:
    """Views scored in one forward. Padding only keeps processes in step: it scores one view, or none, for nothing."""

    view: Tensor
    padding: bool = False


class EntropyScores(NamedTuple):
    """Log-probabilities and entropies, nats."""

    logp: Float[Tensor, "R N"]
    entropy: Float[Tensor, "R N"]


def view_groups(num_views: int, size: int, num_groups: int | None = None) -> list[Group]:
    """Consecutive views in groups of at most `size`, filled up to `num_groups` groups that count for nothing."""
    if size < 1:
        raise ValueError(f"views_per_forward is {size}; expected at least 1")
    groups = [Group(view) for view in torch.split(torch.arange(num_views), size)]
    missing = max(0, (num_groups or 0) - len(groups))
    any_view = torch.arange(min(1, num_views))
    return groups + [Group(any_view, padding=True)] * missing


def groups_by_length(batch: Batch, size: int, num_groups: int | None = None) -> list[Group]:
    """The groups of `view_groups`, of views whose sequences are about as long, so that short ones cost what they are.

    Views of equal length stay in their order: what shows the network the same canvas stays side by side.
    """
    order = batch.sequences.attend.sum(1)[batch.views.row].argsort(stable=True).cpu()
    return [replace(group, view=order[group.view]) for group in view_groups(len(order), size, num_groups)]


def score_group(denoiser: Denoiser, batch: Batch, view: Tensor) -> Scores:
    """Score some views of a batch in one forward; differentiable if gradients are on."""
    views = batch.views.select(view)
    if views.features is not None:
        assert isinstance(denoiser, SchedulingDenoiser)
        means = denoiser.schedule_at(views.features)
        return Scores(means.new_zeros(views.canvas.shape), view, schedule=means)
    size = max(1, len(views))
    scores = score_views(denoiser, batch.sequences, views, views_per_forward=size, transform=batch.transform)
    return Scores(scores.logp, view, scores.plan)


def score_all(denoiser: Denoiser, batch: Batch, size: int) -> Scores:
    """Scores of every view without gradient, `size` views per forward."""
    with torch.no_grad():
        parts = [score_group(denoiser, batch, group.view) for group in groups_by_length(batch, size)]
    return _together(parts)


def _together(parts: list[Scores]) -> Scores:
    """Scores of several groups as those of one, in the order of the views, without gradient."""
    view, order = torch.cat([part.view for part in parts]).sort()
    return Scores(
        torch.cat([part.logp.detach() for part in parts])[order],
        view,
        _joined([part.plan for part in parts], order),
        _joined([part.schedule for part in parts], order),
    )


def _joined(parts: list[Tensor | None], order: Tensor) -> Tensor | None:
    given = [part.detach() for part in parts if part is not None]
    return torch.cat(given)[order] if given else None


def score_with_entropy(denoiser: Denoiser, batch: Batch, size: int) -> EntropyScores:
    """As `score_all`, with the entropies of the distributions scored under."""
    order = torch.cat([group.view for group in groups_by_length(batch, size)])
    with torch.no_grad():
        scores = score_views(
            denoiser,
            batch.sequences,
            batch.views.select(order),
            views_per_forward=size,
            transform=batch.transform,
            entropy=True,
        )
    assert scores.entropy is not None, "asked for"
    place = order.argsort()
    return EntropyScores(scores.logp[place], scores.entropy[place])


def backward(
    algorithm: Algorithm,
    batch: Batch,
    denoiser: Denoiser,
    frozen: Denoiser,
    *,
    groups: list[Group],
    scale: float,
    group_context: GroupContext,
    back_propagate: Callable[[Tensor], None],
    also: Tensor | None = None,
    see: Callable[[Scores], object] = lambda scores: None,
) -> list[Loss]:
    """Add the gradient of `scale * loss` to the parameters.

    Args:
        denoiser: the policy as it is trained (possibly wrapped for several processes).
        frozen: the same weights, called without gradient.
        groups: the same number on every process.
        scale: what the sum is multiplied by: the inverse of the update's exact count, times what averaging over
            processes takes away.
        also: added to the objective of the last group.
        see: called once with the scores of all views, without gradient.

    Returns:
        Losses whose sum is the loss (detached), and one of nothing that reports on all views together.
    """
    if algorithm.is_sum_over_views:
        parts = _direct(algorithm, batch, denoiser, groups)
    else:
        parts = _scores_first(algorithm, batch, denoiser, frozen, groups)
    losses, seen = [], []
    for index, group in enumerate(groups):
        last = index == len(groups) - 1
        with group_context(last):
            objective, loss, scores = next(parts)
            back_propagate(scale * objective if also is None or not last else scale * objective + also)
        losses += [loss] if loss is not None else []
        seen += [] if group.padding else [_together([scores])]  # its graph is not kept
    nothing = torch.zeros_like(losses[0].total)
    scores = _together(seen)
    see(scores)
    return [*losses, Loss(nothing, algorithm.diagnose(batch, scores))]


Part = tuple[Tensor, Loss | None, Scores]
"""What is back-propagated, its share of the loss if it has one, and what was scored for it."""


def _direct(algorithm: Algorithm, batch: Batch, denoiser: Denoiser, groups: list[Group]) -> Iterator[Part]:
    """For a loss that is a sum over views: each group's own loss is its share."""
    for group in groups:
        scores = score_group(denoiser, batch, group.view)
        if group.padding:
            yield torch.stack([part.sum() for part in _numbers(scores)]).sum() * 0.0, None, scores
            continue
        loss = algorithm.loss(batch, scores)
        yield loss.total, Loss(loss.total.detach(), loss.metrics), scores


def _scores_first(
    algorithm: Algorithm, batch: Batch, denoiser: Denoiser, frozen: Denoiser, groups: list[Group]
) -> Iterator[Part]:
    """For any loss: coefficients from a pass without gradient, then one group at a time."""
    size = max(1, *(len(group.view) for group in groups))
    scores = score_all(frozen, batch, size)
    numbers = [part.requires_grad_() for part in _numbers(scores)]
    loss = algorithm.loss(batch, scores)
    coefficients = torch.autograd.grad(loss.total, numbers, allow_unused=True, materialize_grads=True)
    pending: Loss | None = Loss(loss.total.detach(), loss.metrics)
    for group in groups:
        scores = score_group(denoiser, batch, group.view)
        share = 0.0 if group.padding else 1.0
        terms = [
            (part * (share * weight[group.view])).sum()
            for part, weight in zip(_numbers(scores), coefficients, strict=True)
        ]
        yield torch.stack(terms).sum(), pending, scores
        pending = None


def _numbers(scores: Scores) -> list[Tensor]:
    """Everything scored that a loss can depend on. Where the schedule was asked, the network was not."""
    if scores.schedule is not None:
        return [scores.schedule]
    return [scores.logp] if scores.plan is None else [scores.logp, scores.plan]
