"""The published decoding loop, written plainly: what a benchmark compares with. Not part of the library.

LLaDA's `generate` as its paper and its repository describe it: logits of every position, noise for every position and
every token of the vocabulary in float64, confidences of every position. At temperature 1 it samples the same law as
the preset "llada".

Source: Nie et al., https://arxiv.org/abs/2502.09992, generate.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def perturbed(logits: Tensor, temperature: float) -> Tensor:
    """Exponentiated logits over powers of exponential noise: its largest entry is a draw at `temperature`."""
    if temperature == 0:
        return logits
    wide = logits.to(torch.float64)
    noise = torch.rand_like(wide, dtype=torch.float64)
    return wide.exp() / (-torch.log(noise)) ** temperature


@torch.no_grad()
def reference_generate(
    network: torch.nn.Module,
    prompt: Tensor,
    *,
    steps: int,
    gen_length: int,
    block_length: int,
    temperature: float,
    mask_id: int,
) -> Tensor:
    """Tokens of prompt and completion, int64 [B, N]."""
    length = prompt.shape[1]
    canvas = torch.full((prompt.shape[0], length + gen_length), mask_id, dtype=torch.long, device=prompt.device)
    canvas[:, :length] = prompt
    blocks = gen_length // block_length
    steps_per_block = steps // blocks
    for block in range(blocks):
        end = length + (block + 1) * block_length
        masks = (canvas[:, end - block_length : end] == mask_id).sum(dim=1, keepdim=True)
        for step in range(steps_per_block):
            masked = canvas == mask_id
            logits = network(canvas).logits
            drawn = perturbed(logits, temperature).argmax(dim=-1)
            confidence = logits.softmax(dim=-1).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
            confidence[:, end:] = float("-inf")
            drawn = torch.where(masked, drawn, canvas)
            confidence = torch.where(masked, confidence, torch.full_like(confidence, float("-inf")))
            quota = masks // steps_per_block + (step < masks % steps_per_block)
            for row in range(canvas.shape[0]):
                best = confidence[row].topk(int(quota[row])).indices
                canvas[row, best] = drawn[row, best]
    return canvas
