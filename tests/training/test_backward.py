"""The grouped backward against one graph over all views, for every algorithm."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from dllm_rl.algorithms import Algorithm, Batch
from dllm_rl.models.policy_head import attach_head
from dllm_rl.toys.model import tiny_llada
from dllm_rl.training.backward import (
    backward,
    groups_by_length,
    score_all,
    score_group,
    score_with_entropy,
    view_groups,
)
from tests.algorithms.cases import ALGORITHMS, make_batch
from tests.training.small import SmallDenoiser

EACH = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)


def _joint_gradient(algorithm: Algorithm, batch: Batch, denoiser: SmallDenoiser) -> tuple[float, list[torch.Tensor]]:
    everything = torch.arange(len(batch.views))
    loss = algorithm.loss(batch, score_group(denoiser, batch, everything)).total
    return float(loss.detach()), list(torch.autograd.grad(loss, list(denoiser.parameters())))


def _grouped(
    algorithm: Algorithm, batch: Batch, denoiser: SmallDenoiser, size: int, extra: int = 0
) -> tuple[float, list[torch.Tensor]]:
    denoiser.zero_grad()
    num_groups = len(groups_by_length(batch, size)) + extra
    losses = backward(
        algorithm,
        batch,
        denoiser,
        denoiser,
        groups=groups_by_length(batch, size, num_groups),
        scale=1.0,
        group_context=lambda last: nullcontext(),
        back_propagate=lambda objective: objective.backward(),
    )
    return float(sum(loss.total for loss in losses)), [p.grad.clone() for p in denoiser.parameters()]


@EACH
@pytest.mark.parametrize("size", [1, 3, 100])
def test_grouped_backward_is_the_joint_graph(algorithm: Algorithm, size: int) -> None:
    batch, denoiser = make_batch(algorithm), SmallDenoiser()
    value, gradients = _joint_gradient(algorithm, batch, denoiser)
    got_value, got = _grouped(algorithm, batch, denoiser, size)
    assert got_value == pytest.approx(value, rel=1e-12)
    for wanted, gradient in zip(gradients, got, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


@EACH
def test_groups_that_keep_processes_in_step_change_nothing(algorithm: Algorithm) -> None:
    batch, denoiser = make_batch(algorithm), SmallDenoiser()
    value, gradients = _grouped(algorithm, batch, denoiser, 2)
    padded_value, padded = _grouped(algorithm, batch, denoiser, 2, extra=3)
    assert padded_value == value
    for wanted, gradient in zip(gradients, padded, strict=True):
        assert torch.equal(gradient, wanted)


@EACH
def test_only_one_group_is_in_a_graph_at_a_time(algorithm: Algorithm) -> None:
    """When a group is back-propagated, every earlier group's graph has been freed."""
    batch, denoiser = make_batch(algorithm), SmallDenoiser()
    size, alive, peak = 2, [0], [0]

    def count(rows: int) -> None:
        alive[0] += rows
        peak[0] = max(peak[0], alive[0])

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.rows = len(x)
            count(len(x))
            return x.clone()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            count(-ctx.rows)
            return grad

    logits = denoiser._logits
    watched = lambda *args: Watch.apply(logits(*args)) if torch.is_grad_enabled() else logits(*args)  # noqa: E731
    denoiser._logits = watched  # type: ignore[method-assign]
    _grouped(algorithm, batch, denoiser, size)
    assert peak[0] == size and alive[0] == 0


def test_a_loss_that_is_a_sum_costs_one_forward_per_group_and_others_two() -> None:
    for name, passes in (("sft", 1), ("diffu_grpo", 1), ("vrpo", 2), ("diffu_grpo_sequence_elbo", 2)):
        batch, denoiser = make_batch(ALGORITHMS[name]), SmallDenoiser()
        _grouped(ALGORITHMS[name], batch, denoiser, 2)
        assert denoiser.forwards == passes * len(view_groups(len(batch.views), 2)), name


@pytest.mark.parametrize("name", ["vrpo", "cj_grpo"])
def test_score_all_is_score_group_by_group_without_gradient(name: str) -> None:
    batch, denoiser = make_batch(ALGORITHMS[name]), SmallDenoiser()
    assert (batch.transform is not None) == (name == "cj_grpo"), "scored as drawn"
    everything = score_group(denoiser, batch, torch.arange(len(batch.views))).logp
    got = score_all(denoiser, batch, 5).logp
    assert not got.requires_grad
    torch.testing.assert_close(got, everything.detach())


@pytest.mark.parametrize("name", ["cj_grpo_sequence_ratios", "mdpo", "dultra"])
@pytest.mark.parametrize("most", [0, 2], ids=["alone", "beside_others"])
def test_a_micro_batch_without_a_view_makes_the_forwards_of_the_others_and_learns_nothing(name: str, most: int) -> None:
    """On a real network, which cannot be run on no row. Data-parallel wrappers wait for a gradient of every weight."""
    algorithm, model = ALGORITHMS[name], tiny_llada(layers=1)
    if algorithm.head is not None:
        attach_head(model.network, {"type": algorithm.head})
    nothing, batch = torch.zeros(0, dtype=torch.int64), make_batch(algorithm)
    known = {name: getattr(batch, name) for name in ("behaviour_logp", "reference_logp", "selection_logp")}
    batch = replace(
        batch,
        views=batch.views.select(nothing),
        transform=None,
        **{name: value[nothing] for name, value in known.items() if value is not None},
    )
    forwards: list[int] = []
    model.network.register_forward_pre_hook(lambda *_: forwards.append(int(torch.is_grad_enabled())))
    losses = backward(
        algorithm,
        batch,
        model,
        model,
        groups=view_groups(0, 4, most),
        scale=1.0,
        group_context=lambda last: nullcontext(),
        back_propagate=lambda objective: objective.backward(),
    )
    assert sum(forwards) == max(1, most) and float(sum(loss.total for loss in losses)) == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.network.parameters())


def test_view_groups_cover_every_view_once() -> None:
    groups = view_groups(7, 3, num_groups=5)
    assert torch.cat([g.view for g in groups if not g.padding]).tolist() == list(range(7))
    assert [g.padding for g in groups] == [False, False, False, True, True]
    with pytest.raises(ValueError, match="views_per_forward is 0"):
        view_groups(7, 0)


def test_groups_by_length_hold_views_of_similar_length_and_keep_equal_ones_in_order() -> None:
    batch = make_batch(ALGORITHMS["sft_four_draws_per_token"])
    lengths = batch.sequences.attend.sum(1)[batch.views.row]
    groups = groups_by_length(batch, 3, num_groups=7)
    order = torch.cat([group.view for group in groups if not group.padding])
    assert sorted(order.tolist()) == list(range(16)) and [g.padding for g in groups] == [False] * 6 + [True]
    kept = [(int(lengths[view]), view) for view in order.tolist()]
    assert kept == sorted(kept) and len(set(lengths.tolist())) > 2
    assert order.tolist() != list(range(16)), "the rows come in another order"


def test_scores_of_all_views_are_in_their_order_whatever_the_groups_were() -> None:
    for name in ("sft_four_draws_per_token", "dultra"):
        batch, denoiser = make_batch(ALGORITHMS[name]), SmallDenoiser()
        everything = score_group(denoiser, batch, torch.arange(len(batch.views)))
        scores = score_all(denoiser, batch, 3)
        assert scores.view.tolist() == list(range(len(batch.views)))
        torch.testing.assert_close(scores.logp, everything.logp.detach())
        if everything.plan is not None:
            torch.testing.assert_close(scores.plan, everything.plan.detach())
        found = score_with_entropy(denoiser, batch, 3)
        torch.testing.assert_close(found.logp, everything.logp.detach())
        spread = denoiser.score(
            batch.views.canvas,
            batch.views.canvas,
            batch.views.scored,
            batch.sequences.attend[batch.views.row],
            batch.transform,
            entropy=True,
        ).entropy
        torch.testing.assert_close(found.entropy, spread.detach())
