"""From prompts as text to completions as text: the command line's `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TextIO

import torch

from dllm_rl import rng
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import DataError, ModelContractError, RecipeError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings, WatchRows
from dllm_rl.rollouts.terminal import Live, Painter, glyphs_of
from dllm_rl.rollouts.text import Prompt, decode_until_eos, encode_prompt, prompt_text, token_text, tokenizer_of
from dllm_rl.rollouts.trace import SamplerFacts, Trace, token_ids, trace_of
from dllm_rl.rollouts.view import View
from dllm_rl.samplers.canvas import Template
from dllm_rl.samplers.drivers.base import Driven, Driver


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """A prompt and what the model wrote after it."""

    prompt: str
    completion: str
    """Up to the first end of sequence, without special tokens."""
    finished: bool
    """Whether an end of sequence was written."""
    forwards: int
    """Network evaluations it took, those of rollouts that were dropped included."""


@dataclass(frozen=True, slots=True)
class Completed:
    """Texts and how they came to be."""

    texts: list[GeneratedText]
    trajectory: Trajectory


def generate_text(
    model: DiffusionModel,
    prompts: Sequence[Prompt],
    settings: RolloutSettings,
    *,
    chat: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[GeneratedText]:
    """Generate a completion for each prompt. See `complete`."""
    return complete(model, prompts, settings, chat=chat, seed=seed, batch_size=batch_size).texts


def complete(
    model: DiffusionModel,
    prompts: Sequence[Prompt],
    settings: RolloutSettings,
    *,
    chat: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    watch: WatchRows | None = None,
    fixed: Template | None = None,
    driver: Driver[Driven] | None = None,
) -> Completed:
    """Generate a completion for each prompt, and keep what happened.

    Args:
        prompts: texts or chat messages.
        chat: give each prompt to the tokenizer's chat template, a text as a user's message; False continues the text as
            it is.
        watch: cannot look on at a driver.
        fixed: ids of every completion that are given, None where one is to be written; see `samplers.generate`.
        driver: how to decode; None for one rollout of each prompt.

    Raises:
        RecipeError: the driver cannot run this sampler, or is to be watched.
        DataError: a prompt is empty, or `fixed` does not fit.
        ModelContractError: the model came without a tokenizer, or the tokenizer has no chat template.
    """
    if driver is not None and watch is not None:
        raise RecipeError("a driver keeps several canvases of a prompt and cannot be watched; leave one of them out")
    decode = decode_until_eos(model)
    ids = prompt_ids(model, prompts, chat)
    engine = LocalEngine(model, settings, batch_size)
    keys, given = rng.sample_keys(seed, torch.arange(len(prompts))), None if fixed is None else [fixed] * len(prompts)
    if driver is None:
        out = engine.generate(ids, keys, watch=watch, fixed=given)
        forwards = out.nfe
    else:
        out, forwards = engine.drive(driver, ids, keys, fixed=given)
    rows = zip(map(prompt_text, prompts), map(decode, out.completions), out.finished.tolist(), forwards, strict=True)
    return Completed([GeneratedText(*row) for row in rows], out)


def complete_live(
    model: DiffusionModel,
    prompts: Sequence[Prompt],
    settings: RolloutSettings,
    stream: TextIO,
    *,
    chat: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    fixed: Template | None = None,
) -> Completed:
    """As `complete`, with the canvases drawn on the terminal `stream` while they are denoised.

    The last state of a single prompt stays on the screen; of several nothing does.
    """
    decode_until_eos(model)  # no tokenizer, no view
    texts = [prompt_text(prompt) for prompt in prompts]

    def view(rows: Sequence[int]) -> View:
        text = partial(token_text, model.tokenizer)
        return View(text, model.spec.eos_ids, [texts[row] for row in rows], rows, glyphs_of(stream))

    with Painter(stream) as painter:
        live = Live(painter, view)
        done = complete(model, prompts, settings, chat=chat, seed=seed, batch_size=batch_size, watch=live, fixed=fixed)
        live.finish(keep=len(prompts) == 1)
    return done


def trace_of_text(
    done: Completed,
    model: DiffusionModel,
    settings: RolloutSettings,
    *,
    name: str,
    seed: int,
    driver: str | None = None,
) -> Trace:
    """What is to be written about a rollout.

    Args:
        name: the model as the user named it.
        driver: the driver and its options as the user named them.
    """
    return trace_of(
        done.trajectory,
        model=name,
        sampler=SamplerFacts(
            name=settings.sampler,
            gen_length=done.trajectory.gen_length,
            steps=settings.steps,
            block_length=settings.block_length,
            temperature=settings.temperature,
            cfg_scale=settings.cfg_scale,
            stop_at_eos=settings.stop_at_eos,
            cache=settings.cache,
            options=dict(settings.options),
            driver=driver,
        ),
        seed=seed,
        prompt_texts=[row.prompt for row in done.texts],
        completions=[row.completion for row in done.texts],
        texts={token: token_text(model.tokenizer, token) for token in token_ids(done.trajectory)},
    )


def prompt_ids(model: DiffusionModel, prompts: Sequence[Prompt], chat: bool) -> list[list[int]]:
    """Ids of prompts, each by the chat template or as it is.

    Raises:
        DataError: a prompt is empty.
        ModelContractError: the model came without a tokenizer, or the tokenizer has no chat template.
    """
    tokenizer = tokenizer_of(model)
    if chat and not tokenizer.chat_template:
        raise ModelContractError("the tokenizer has no chat template; pass chat=False to continue the text as it is")
    return [encode_prompt(tokenizer, _turn(row, prompt, chat)) for row, prompt in enumerate(prompts)]


def _turn(row: int, prompt: Prompt, chat: bool) -> Prompt:
    if not prompt_text(prompt).strip():
        raise DataError(f"prompt {row} is empty; expected some text")
    return [{"role": "user", "content": prompt}] if chat and isinstance(prompt, str) else prompt
