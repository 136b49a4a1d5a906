"""Generation: prompts in, trajectory out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from dllm_rl import rng
from dllm_rl.diffusion.denoiser import CachingDenoiser, Denoiser
from dllm_rl.diffusion.trajectory import Exactness, Trajectory
from dllm_rl.errors import DataError, ModelContractError, RecipeError
from dllm_rl.samplers.cache import Cached, CachePolicy, make_policy
from dllm_rl.samplers.canvas import Canvas, Template, blank_canvas
from dllm_rl.samplers.loop import Sampler, State, Watch, run, start
from dllm_rl.samplers.network import Exact
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request


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
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int = 0,
    sample_ids: Sequence[int] | None = None,
    fixed: Sequence[Template] | None = None,
    cache: str = "none",
    stop_at_eos: bool = False,
    record_predictions: bool = False,
    watch: Watch | None = None,
    **options: Any,
) -> Trajectory:
    """Generate `gen_length` tokens after each prompt, all prompts in one batch.

    A row's text depends on its prompt, the seed and its sample id, and not on the other rows (up to the last bits of
    the network's arithmetic). Finished rows leave the batch. For more prompts than fit, see `rollouts.engine`.

    Args:
        prompts: token ids, taken as given; shorter ones are padded on the left, unattended. A prompt may be empty.
        sampler: name of a preset, see `samplers.presets`.
        steps: forwards, of all blocks together; None for one per token. Those with nothing left to write are not made.
            Samplers that decide by themselves refuse it.
        block_length: None for one block, or for the model's own. Blocks are written one after the other.
        temperature: 0 is greedy, for evaluation; such a rollout has no likelihood to learn from.
        cfg_scale: strength of classifier-free guidance; 0 is none.
        top_p: draw from the most probable tokens whose mass reaches this; None for all.
        top_k: draw from this many of the most probable tokens; None for all.
        sample_ids: identity of each row, default 0, 1, ...; equal prompts with different ids get different texts.
        fixed: for each prompt, `gen_length` token ids that are given, None where one is to be written. What is written
            is conditioned on those after it too, but for those in later blocks of a block-causal model. Steps are
            shared among the tokens to be written; blocks without any take none.
        cache: "none", "prefix", "dual", "dkv", "vicinity", or "block" for block-causal models; only "none" and "block"
            are exact.
        stop_at_eos: finish a row when a block that holds an end of sequence is full, and fill the rest with it.
        record_predictions: keep what every step predicted of all that was hidden, as `Trajectory.predictions`; not for
            block-causal models, nor through a cache.
        watch: called with the number of forwards done and the canvas, before the first forward and after each.
        options: of the preset.

    Raises:
        RecipeError: unknown sampler, option or cache, numbers that do not divide, or a setting out of range.
        DataError: no prompts, too long a prompt, a template that does not fit, templates with stop_at_eos, or not one
            sample id per prompt.
        ModelContractError: the model cannot do what is asked for: keep a cache, plan.
    """
    request = Request(gen_length, block_length, steps, temperature, cfg_scale, top_p, top_k, stop_at_eos)
    chosen = replace(make_sampler(model.spec, sampler, options, request), record_predictions=record_predictions)
    policy = make_policy(cache, model.spec)
    keys = row_keys(seed, sample_ids, len(prompts))
    return rollout(model, prompts, chosen, keys, fixed=fixed, policy=policy, watch=watch)


def row_keys(seed: int, sample_ids: Sequence[int] | None, rows: int) -> Int64[Tensor, " B"]:
    """A key per row; ids are 0, 1, ... unless given.

    Raises:
        DataError: not one id per row.
    """
    ids = range(rows) if sample_ids is None else sample_ids
    if len(ids) != rows:
        raise DataError(f"{len(ids)} sample_ids for {rows} prompts; expected one id per prompt")
    return rng.sample_keys(seed, torch.tensor(ids, dtype=torch.int64))


@torch.no_grad()
def rollout(
    model: Denoiser,
    prompts: Sequence[Sequence[int]],
    sampler: Sampler,
    keys: Int64[Tensor, " B"],
    update: int = 0,
    *,
    fixed: Sequence[Template] | None = None,
    policy: CachePolicy | None = None,
    watch: Watch | None = None,
) -> Trajectory:
    """Run a sampler on one batch of prompts.

    Args:
        keys: one per prompt; every draw of the row is folded from it.
        update: version of the weights, to be recorded.
        policy: which columns each forward recomputes; None for all.

    Raises:
        DataError: no prompts, a prompt too long for the model, a template that does not fit, or templates for a
            sampler that stops at the end of sequence.
        ModelContractError: the model cannot do what the sampler or the policy needs.
    """
    sampler = sampler.at(update)
    state = begin(model, prompts, sampler, keys, fixed=fixed, policy=policy)
    state = run(state, sampler, model.spec.mask_id, watch)
    return trajectory(state, prompts, model, sampler, policy, update)


def begin(
    model: Denoiser,
    prompts: Sequence[Sequence[int]],
    sampler: Sampler,
    keys: Int64[Tensor, " B"],
    *,
    fixed: Sequence[Template] | None = None,
    policy: CachePolicy | None = None,
) -> State:
    """A rollout with nothing written yet, for `loop.run` or for a driver. See `rollout`."""
    if fixed is not None and sampler.end_ids:
        raise DataError(
            "stop_at_eos fills what follows an end of sequence, and fixed tokens may stand there; set stop_at_eos to "
            "False, or leave the templates out"
        )
    canvas = blank_canvas(model, prompts, sampler.blocks.layout(prompts), keys, fixed)
    return start(canvas, _network(model, sampler, policy, canvas))


def trajectory(
    state: State,
    prompts: Sequence[Sequence[int]],
    model: Denoiser,
    sampler: Sampler,
    policy: CachePolicy | None = None,
    update: int = 0,
) -> Trajectory:
    """The trajectory of a rollout, as far as it got."""
    exactness: Exactness = sampler.exactness
    if policy is not None and not policy.exact and exactness != "none":
        exactness = "approximate_cache"
    given = [list(prompt) for prompt in prompts]
    return state.recorder.finish(
        given, state.canvas, model.spec, sampler.transform, exactness, update, sampler.planner_temperature
    )


def _network(model: Denoiser, sampler: Sampler, policy: CachePolicy | None, canvas: Canvas) -> Exact | Cached:
    cfg_scale = sampler.transform.cfg_scale
    if policy is None:
        return Exact(model, cfg_scale)
    if sampler.record_predictions:
        raise RecipeError(
            "one-step completions are asked for through a cache, which leaves out what lies beyond the open block; set "
            "cache to 'none'"
        )
    if not isinstance(model, CachingDenoiser):
        raise ModelContractError("this model keeps no keys and values; set cache to 'none'")
    return Cached(model, policy, cfg_scale, canvas.tokens.shape)
