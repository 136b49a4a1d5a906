"""What a schedule policy is shown of a step: a few numbers per row, whatever the length, the batch and the padding."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from dllm_rl.diffusion.transform import Transform
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.names import QUANTILES
from dllm_rl.samplers.network import entropies
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.score import MaxProbability


def features(proposal: Proposal, canvas: Canvas, forbidden_ids: tuple[int, ...]) -> Float64[Tensor, "B F"]:
    """The numbers that `names.FEATURES` names: of the open positions and of the row's progress; zeros for finished
    rows.

    Nothing is read of padding, of other rows or of positions that are not open. Tokens given count as if they were not
    there.

    Source: ours; the published policies read the network's hidden states.
    """
    shape, writable = canvas.hidden.shape, canvas.editable.sum(dim=1).to(torch.float64)
    progress = [
        canvas.eligible.sum(dim=1) / canvas.opening.to(torch.float64),
        (canvas.hidden & canvas.editable).sum(dim=1) / writable,
        canvas.forwards / writable,
    ]
    sureness = MaxProbability(Transform(forbidden_ids=forbidden_ids)).of_positions(proposal, canvas)
    pooled = [
        _pooled(proposal.dense(values.to(torch.float64), shape, empty=float("inf")))
        for values in (sureness, entropies(proposal, forbidden_ids))
    ]
    table = torch.cat([torch.stack(progress, dim=1), *pooled], dim=1)
    return table.masked_fill(canvas.finished[:, None], 0.0)


def _pooled(values: Float64[Tensor, "B L"]) -> Float64[Tensor, "B 6"]:
    """Mean and quantiles, linear between neighbours, of the finite numbers of each row."""
    there = values.isfinite()
    count = there.sum(dim=1, keepdim=True)
    mean = values.masked_fill(~there, 0.0).sum(dim=1, keepdim=True) / count
    ordered = values.sort(dim=1).values
    place = (count - 1).clamp(min=0) * torch.tensor(QUANTILES, dtype=torch.float64, device=values.device)
    low, high = place.floor().to(torch.int64), place.ceil().to(torch.int64)
    below, above = ordered.gather(1, low), ordered.gather(1, high)
    return torch.cat([mean, below + (place - low) * (above - below)], dim=1)
