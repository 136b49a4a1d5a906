"""The views of a rollout: the canvases that its sampler saw, scored where it wrote."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.nn.functional import pad

from dllm_rl.diffusion.trajectory import Op, Trajectory
from dllm_rl.diffusion.views import Sequences, Views

_WITHIN_A_STEP = (Op.WRITE, Op.REMASK, Op.EDIT, Op.FIX)
"""What happens first. At most once to a position, so that the order within one kind does not matter."""


@dataclass(frozen=True, slots=True)
class Replay:
    """R views of B rollouts, each what a row looked like before one of its forwards, scored against its draws."""

    views: Views
    """Weights are 1."""
    behaviour_logp: Float64[Tensor, "R N"]
    """Log-probability of each token under the distribution it was drawn from, nats; zero where nothing is scored."""
    step: Int64[Tensor, " R"]
    """The forward each view was, counted from 1."""
    open: Bool[Tensor, "R N"] | None = None
    """Positions that the step could choose from: what was hidden in the block being written. None where the log does
    not tell: blocks were not recorded, or what was written was hidden again, which may open several."""
    selection_logp: Float64[Tensor, " R"] | None = None
    """Log-probability that the step chose the positions it did, nats."""


def replay(trajectory: Trajectory, sequences: Sequences) -> Replay:
    """Every token of a rollout in the context in which it was drawn, tokens that were overwritten later too.

    One view for every forward in which a row wrote something; a row's side by side, in order. Scored under
    `trajectory.transform` by the weights that wrote it, they give `behaviour_logp` again (up to rounding, and unless an
    approximate cache wrote it). Where a schedule set temperature or guidance step by step, each view has its own.

    Args:
        sequences: those of the trajectory, possibly with more padding on the left.

    Source: Yang et al. (CJ-GRPO), https://arxiv.org/abs/2509.23924, section 4.2, which keeps every canvas; here they
    are made from the log. It assumes that a token once written stays; here it need not.
    """
    events = trajectory.events
    drawn = events.select((events.op == Op.WRITE).nonzero()[:, 0])
    moments = trajectory.num_steps + 1
    moment, view = torch.unique(drawn.row * moments + drawn.step, return_inverse=True)
    row, step = moment // moments, moment % moments
    before = sequences.tokens.shape[1] - trajectory.gen_length
    canvas = torch.cat([sequences.tokens[row, :before], _completions_before(trajectory, row, step)], dim=1)
    cell = (view, before + drawn.position)
    scored: Bool[Tensor, "R N"] = torch.zeros_like(canvas, dtype=torch.bool).index_put(
        cell, torch.ones_like(view).bool()
    )
    tokens = sequences.tokens[row].index_put(cell, drawn.token)
    logq = torch.zeros(canvas.shape, dtype=torch.float64, device=canvas.device).index_put(cell, drawn.logq)
    planned = trajectory.schedule
    temperature, cfg_scale = (
        (None, None) if planned is None else (_at(planned.temperature, row, step), _at(planned.cfg_scale, row, step))
    )
    return Replay(
        Views(canvas, scored, scored.double(), row, tokens, temperature=temperature, cfg_scale=cfg_scale),
        logq,
        step,
        _open(trajectory, canvas[:, before:], row, before),
        trajectory.selection_logp[row, step - 1],
    )


def _open(
    trajectory: Trajectory, completion: Int64[Tensor, "R L"], row: Int64[Tensor, " R"], before: int
) -> Bool[Tensor, "R N"] | None:
    """What is hidden in the first block that has anything hidden; tokens given are not, so they are never open."""
    if trajectory.block_of is None or bool((trajectory.events.op == Op.REMASK).any()):
        return None
    hidden = completion == trajectory.mask_id
    block = trajectory.block_of[row]
    current = block.masked_fill(~hidden, trajectory.gen_length).amin(dim=1, keepdim=True)
    return pad(hidden & (block == current), (before, 0))


def _at(
    decided: Float64[Tensor, "B S"] | None, row: Int64[Tensor, " R"], step: Int64[Tensor, " R"]
) -> Float64[Tensor, " R"] | None:
    """What a schedule decided for each of some forwards, counted from 1."""
    return None if decided is None else decided[row, step - 1]


def replay_predictions(
    trajectory: Trajectory, sequences: Sequences, row: Int64[Tensor, " R"], step: Int64[Tensor, " R"]
) -> Replay:
    """What the network saw of a `row` in forward `step`, scored against its whole prediction of what was hidden.

    Args:
        trajectory: one that recorded its predictions.
        sequences: those of the trajectory, possibly with more padding on the left.
        step: counted from 1, at most the row's last.

    Source: He et al. (MDPO), https://arxiv.org/abs/2508.13148, where the action of a step is the whole completion.
    """
    assert trajectory.predictions is not None, "the rollout recorded its predictions"
    before = sequences.tokens.shape[1] - trajectory.gen_length
    prompt, completion = sequences.tokens[row, :before], _completions_before(trajectory, row, step)
    scored = pad(completion == trajectory.mask_id, (before, 0))
    tokens = torch.cat([prompt, trajectory.predictions.tokens[row, step - 1]], dim=1)
    logq = pad(trajectory.predictions.logq[row, step - 1], (before, 0))
    views = Views(torch.cat([prompt, completion], dim=1), scored, scored.double(), row, tokens)
    return Replay(views, logq, step)


def _completions_before(
    trajectory: Trajectory, row: Int64[Tensor, " R"], step: Int64[Tensor, " R"]
) -> Int64[Tensor, "R L"]:
    """The completion of each `row` as it stood before forward `step`, in one walk through the log."""
    events, length = trajectory.events, trajectory.gen_length
    completion = torch.full((len(trajectory), length), trajectory.mask_id, device=trajectory.device)
    found = completion[row]
    for now in range(trajectory.num_steps + 1):
        asked = step == now
        found[asked] = completion[row[asked]]
        for op in _WITHIN_A_STEP:
            happened = (events.step == now) & (events.op == op)
            completion[events.row[happened], events.position[happened]] = events.token[happened]
    return found
