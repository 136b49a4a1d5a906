"""Generation: prompts in, trajectory out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from dllm_rl import rng
from dllm_rl.diffusion.denoiser import Denoiser
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import DataError
from dllm_rl.samplers.canvas import blank_canvas
from dllm_rl.samplers.loop import Sampler, run
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.record import Recorder


def generate(
    model: Denoiser,
    prompts: Sequence[Sequence[int]],
    *,
    sampler: str = "llada",
    gen_length: int = 256,
    steps: int | None = None,
    block_length: int | None = None,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    seed: int = 0,
    sample_ids: Sequence[int] | None = None,
    **options: Any,
) -> Trajectory:
    """Generate `gen_length` tokens after each prompt, all prompts in one batch.

    A row's text depends on its prompt, the seed and its sample id, and not on the other rows (up to the last bits of
    the network's own arithmetic). For more prompts than fit in one batch, see `rollouts.engine`.

    Args:
        prompts: token ids, taken exactly as given; shorter ones are padded on the left and the padding is not attended.
            A prompt may be empty.
        sampler: name of a preset: "llada" or "rl".
        steps: forwards, of all blocks together; None for one per token. Those with nothing left to write are not made.
        block_length: None for one block. Blocks are written one after the other.
        temperature: 0 is greedy, for evaluation; such a rollout has no likelihood to learn from.
        cfg_scale: strength of classifier-free guidance; 0 is none.
        sample_ids: identity of each row, default 0, 1, ...; equal prompts with different ids get different texts.
        options: of the preset; for "llada": remasking, logits_eos_inf, confidence_eos_eot_inf, eot_id.

    Raises:
        RecipeError: unknown sampler or option, numbers that do not divide, or a negative temperature or cfg_scale.
        DataError: no prompts, a prompt too long for the model, or not one sample id per prompt.
    """
    chosen = make_sampler(
        model.spec,
        sampler,
        options,
        gen_length=gen_length,
        block_length=block_length,
        steps=steps,
        temperature=temperature,
        cfg_scale=cfg_scale,
    )
    ids = range(len(prompts)) if sample_ids is None else sample_ids
    if len(ids) != len(prompts):
        raise DataError(f"{len(ids)} sample_ids for {len(prompts)} prompts; expected one id per prompt")
    return rollout(model, prompts, chosen, rng.sample_keys(seed, torch.tensor(ids, dtype=torch.int64)))


@torch.no_grad()
def rollout(
    model: Denoiser, prompts: Sequence[Sequence[int]], sampler: Sampler, keys: Int64[Tensor, " B"], update: int = 0
) -> Trajectory:
    """Run a sampler on one batch of prompts.

    Args:
        keys: one per prompt; every draw of the row is folded from it.
        update: version of the weights, to be recorded.

    Raises:
        DataError: no prompts, or a prompt too long for the model.
    """
    recorder = Recorder()
    canvas = run(model, blank_canvas(model, prompts, sampler.blocks.gen_length, keys), sampler, recorder)
    return recorder.finish(
        [list(prompt) for prompt in prompts], canvas, model.spec, sampler.transform, sampler.exactness, update
    )
