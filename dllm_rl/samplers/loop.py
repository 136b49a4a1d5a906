"""The sampling loop: propose, score, select, write, record. The only place that changes a canvas."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from dllm_rl.diffusion.denoiser import Denoiser
from dllm_rl.diffusion.trajectory import Exactness
from dllm_rl.diffusion.transform import Transform
from dllm_rl.samplers.blocks import Blocks
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import draw, propose
from dllm_rl.samplers.record import Recorder
from dllm_rl.samplers.score import Score
from dllm_rl.samplers.select import Select


@dataclass(frozen=True, slots=True)
class Sampler:
    """A way to decode, put together from components."""

    transform: Transform
    score: Score
    select: Select
    blocks: Blocks

    @property
    def exactness(self) -> Exactness:
        return "none" if self.transform.temperature == 0 else self.score.exactness


def run(denoiser: Denoiser, canvas: Canvas, sampler: Sampler, recorder: Recorder) -> Canvas:
    """Write every hidden position of the canvas, block after block."""
    positions = torch.arange(canvas.hidden.shape[1], device=canvas.hidden.device)
    for start in sampler.blocks.starts:
        window = (positions >= start) & (positions < start + sampler.blocks.block_length)
        opening = (canvas.hidden & window).sum(dim=1)
        turn = 0
        while (eligible := canvas.hidden & window).any():
            canvas = _step(denoiser, canvas, sampler, recorder, eligible, opening, turn)
            turn += 1
    return canvas


def _step(
    denoiser: Denoiser,
    canvas: Canvas,
    sampler: Sampler,
    recorder: Recorder,
    eligible: Bool[Tensor, "B L"],
    opening: Int64[Tensor, " B"],
    turn: int,
) -> Canvas:
    transform, score = sampler.transform, sampler.score
    proposal = propose(denoiser, canvas, eligible, recorder.step + 1, transform)
    drawn = draw(proposal, transform) if score.reads_draw else None
    scores = score(proposal, drawn)
    table = torch.zeros(eligible.shape, dtype=scores.dtype, device=scores.device)
    table[eligible] = scores
    chosen = sampler.select(table, eligible, opening, turn)[eligible]
    written = proposal.select(chosen)
    tokens = draw(written, transform) if drawn is None else drawn.select(chosen)
    if transform.temperature == 0:
        selection = torch.zeros(len(opening), dtype=torch.float64, device=scores.device)
    else:
        selection = score.selection_logp(proposal, transform, scores, chosen, len(opening))
    recorder.forward(eligible.any(dim=1), selection)
    recorder.write(written, tokens, scores[chosen])
    return canvas.write(written.row, written.index, tokens.token)
