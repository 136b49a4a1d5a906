"""From prompts as text to completions as text: the command line's `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dllm_rl import rng
from dllm_rl.errors import DataError, ModelContractError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.text import Prompt, decode_until_eos, encode_prompt


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """A prompt and what the model wrote after it."""

    prompt: str
    completion: str
    """Up to the first end of sequence, without special tokens."""
    finished: bool
    """Whether an end of sequence was written."""
    forwards: int
    """Network evaluations it took."""


def generate_text(
    model: DiffusionModel,
    prompts: Sequence[str],
    settings: RolloutSettings,
    *,
    chat: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[GeneratedText]:
    """Generate a completion for each prompt.

    Args:
        chat: give each prompt to the tokenizer's chat template as a user's message; False continues the text as it is.

    Raises:
        DataError: a prompt is empty.
        ModelContractError: the model came without a tokenizer, or the tokenizer has no chat template.
    """
    decode = decode_until_eos(model)
    tokenizer: Any = model.tokenizer  # there is one, or there would be no decoder
    if chat and not tokenizer.chat_template:
        raise ModelContractError("the tokenizer has no chat template; pass chat=False to continue the text as it is")
    ids = [encode_prompt(tokenizer, _turn(row, prompt, chat)) for row, prompt in enumerate(prompts)]
    keys = rng.sample_keys(seed, torch.arange(len(prompts)))
    out = LocalEngine(model, settings, batch_size).generate(ids, keys)
    texts = [decode(tokens) for tokens in out.completions]
    rows = zip(prompts, texts, out.finished.tolist(), out.nfe, strict=True)
    return [GeneratedText(prompt, text, finished, forwards) for prompt, text, finished, forwards in rows]


def _turn(row: int, prompt: str, chat: bool) -> Prompt:
    if not prompt.strip():
        raise DataError(f"prompt {row} is empty; expected some text")
    return [{"role": "user", "content": prompt}] if chat else prompt
