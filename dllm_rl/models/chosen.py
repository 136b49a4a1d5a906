"""Log-probabilities of chosen tokens straight from hidden states, a tile of the vocabulary at a time.

The normaliser of the softmax is added up tile by tile, as flash attention does over keys, so logits never exist beyond
a tile, which stays in a CPU's cache. The backward computes each tile once more and takes both gradients from it there
and then. The same idea for left-to-right models: Wijmans et al., https://arxiv.org/abs/2411.09009; here one hidden
state may be asked about several tokens, and no gradient is dropped for being small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

TILE = 2**26
"""Logits alive at once, or numbers of the weight in the precision of the logits: 0.27 GB in float32."""
TILE_ON_CPU = 2**20
IN_ORDER = 2**15
"""Numbers from which torch adds on several threads of a CPU: its grain size."""
FEWEST_COLUMNS = 256
"""Of a tile, however many rows there are: as many floats per row as a small hidden state has."""


def chosen_logp(
    hidden: Float[Tensor, "U H"],
    weight: Float[Tensor, "V H"],
    row: Int64[Tensor, " T"],
    tokens: Int64[Tensor, " T"],
    forbidden_ids: Sequence[int] = (),
) -> Float[Tensor, " T"]:
    """Log-probability, in nats, of each token under the softmax of its row's logits; differentiable once.

    Wrong to use where the logits are not linear in `hidden`, as after top-k.

    Args:
        hidden: in the precision to compute in; temperature and guidance are already in it.
        weight: of the output head, in any precision; its gradient is added up in that of `hidden`.
        row: which hidden state each token is asked of.
        forbidden_ids: of probability 0; a forbidden token's log-probability is minus infinity.
    """
    return _chosen_logp(hidden, weight, row, tokens, list(forbidden_ids))[0]  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Tile:
    """Logits of all rows for consecutive ids."""

    logits: Float[Tensor, "U C"]
    weight: Float[Tensor, "C H"]
    start: int
    chosen: Int64[Tensor, " c"]
    """Places, among the tokens asked about, of those in this tile."""
    row: Int64[Tensor, " c"]
    column: Int64[Tensor, " c"]


def _tiles(
    hidden: Tensor, weight: Tensor, row: Tensor, tokens: Tensor, forbidden_ids: Sequence[int], shift: Tensor
) -> Iterator[_Tile]:
    """All tiles, in one buffer: each overwrites the one before it.

    Args:
        shift: [U, 1], taken off the logits.

    Products here write into what is given, and autocast leaves such products alone.
    """
    rows, vocabulary = hidden.shape[0], weight.shape[0]
    budget = TILE_ON_CPU if hidden.device.type == "cpu" else TILE
    width = min(vocabulary, max(FEWEST_COLUMNS, budget // max(rows, hidden.shape[1])))
    starts = range(0, vocabulary, width)
    order = tokens.argsort()
    edges = torch.searchsorted(tokens[order], torch.tensor([*starts, vocabulary], device=tokens.device)).tolist()
    if edges[0] > 0 or edges[-1] < len(tokens):
        raise IndexError(f"tokens are from {int(tokens.min())} to {int(tokens.max())}; expected ids below {vocabulary}")
    buffer = hidden.new_empty(rows * width)
    for number, start in enumerate(starts):
        part = weight[start : start + width].to(hidden.dtype)
        logits = buffer[: rows * len(part)].view(rows, len(part))
        torch.addmm(shift, hidden, part.T, beta=-1, out=logits)
        never = [each - start for each in forbidden_ids if start <= each < start + len(part)]
        if never:
            logits.index_fill_(1, torch.tensor(never, device=logits.device), float("-inf"))
        chosen = order[edges[number] : edges[number + 1]]
        yield _Tile(logits, part, start, chosen, row[chosen], tokens[chosen] - start)


@torch.library.custom_op(
    "dllm_rl::chosen_logp",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor row, Tensor tokens, int[] forbidden_ids) -> (Tensor, Tensor)",
)
def _chosen_logp(
    hidden: Float[Tensor, "U H"],
    weight: Float[Tensor, "V H"],
    row: Int64[Tensor, " T"],
    tokens: Int64[Tensor, " T"],
    forbidden_ids: Sequence[int],
) -> tuple[Float[Tensor, " T"], Float[Tensor, "U 1"]]:
    """Log-probabilities, and the log-normaliser of every row. An operator, so that a compiler sees one step."""
    rows = hidden.shape[0]
    logp = hidden.new_empty(tokens.shape[0])
    largest = hidden.new_full((rows, 1), torch.finfo(hidden.dtype).min)
    total = hidden.new_zeros(rows, 1)
    for tile in _tiles(hidden, weight, row, tokens, forbidden_ids, hidden.new_zeros(1, 1)):
        logp[tile.chosen] = tile.logits[tile.row, tile.column]
        before, largest = largest, torch.maximum(largest, tile.logits.amax(1, keepdim=True))
        total.mul_(before.sub_(largest).exp_()).add_(tile.logits.sub_(largest).exp_().sum(1, keepdim=True))
    return logp - (largest[row, 0] + total[row, 0].log()), largest + total.log()


@torch.library.custom_op(
    "dllm_rl::chosen_logp_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor log_total, Tensor hidden, Tensor weight, Tensor row, Tensor tokens, "
    "int[] forbidden_ids, bool of_weight) -> (Tensor, Tensor)",
)
def _chosen_logp_backward(
    gradient: Float[Tensor, " T"],
    log_total: Float[Tensor, "U 1"],
    hidden: Float[Tensor, "U H"],
    weight: Float[Tensor, "V H"],
    row: Int64[Tensor, " T"],
    tokens: Int64[Tensor, " T"],
    forbidden_ids: Sequence[int],
    of_weight: bool,
) -> tuple[Float[Tensor, "U H"], Float[Tensor, ...]]:
    """Gradients of the hidden states and, if wanted, of the weight (else empty)."""
    of_row = _add(hidden.new_zeros(hidden.shape[0]), row, gradient)[:, None]
    weighted, minus = gradient[:, None] * hidden[row], -of_row * hidden
    to_hidden = _add(torch.zeros_like(hidden), row, gradient[:, None] * weight[tokens].to(hidden.dtype))
    expected = torch.zeros_like(hidden)
    to_weight = torch.empty_like(weight) if of_weight else weight.new_empty(0)
    for tile in _tiles(hidden, weight, row, tokens, forbidden_ids, log_total):
        probs = tile.logits.exp_()
        expected.addmm_(probs, tile.weight)
        if of_weight:
            part = to_weight[tile.start : tile.start + len(tile.weight)]
            wide = part if part.dtype == hidden.dtype else torch.empty_like(part, dtype=hidden.dtype)
            _add(torch.mm(probs.T, minus, out=wide), tile.column, weighted[tile.chosen])
            part.copy_(wide)  # nothing, if it is the same
    return to_hidden.sub_(expected.mul_(of_row)), to_weight


def _add(total: Tensor, place: Int64[Tensor, " n"], parts: Tensor) -> Tensor:
    """Add parts where they belong, in their order where places repeat; far cheaper here than `index_add_`."""
    size = max(1, len(parts))
    if parts.device.type == "cpu":  # where more numbers are added by several threads, in any order
        size = max(1, (IN_ORDER - 1) // max(1, parts[:1].numel()))
    for where, some in zip(torch.split(place, size), torch.split(parts, size), strict=True):
        total.index_put_((where,), some, accumulate=True)
    return total


@_chosen_logp.register_fake
def _(
    hidden: Tensor, weight: Tensor, row: Tensor, tokens: Tensor, forbidden_ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(tokens.shape[0]), hidden.new_empty(hidden.shape[0], 1)


@_chosen_logp_backward.register_fake
def _(
    gradient: Tensor,
    log_total: Tensor,
    hidden: Tensor,
    weight: Tensor,
    row: Tensor,
    tokens: Tensor,
    forbidden_ids: Sequence[int],
    of_weight: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight) if of_weight else weight.new_empty(0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, weight, row, tokens, ctx.forbidden_ids = inputs
    ctx.save_for_backward(output[1], hidden, weight, row, tokens)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    of_weight = ctx.needs_input_grad[1]
    to_hidden, to_weight = _chosen_logp_backward(gradient, *ctx.saved_tensors, ctx.forbidden_ids, of_weight)
    return to_hidden, to_weight if of_weight else None, None, None, None


_chosen_logp.register_autograd(_differentiate, setup_context=_keep)
