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
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ModelContractError(
            "the model's folder has no tokenizer files, which text needs; add them or call generate() with ids"
        )
    if chat and not tokenizer.chat_template:
        raise ModelContractError("the tokenizer has no chat template; pass chat=False to continue the text as it is")
    ids = [_encode(tokenizer, row, prompt, chat) for row, prompt in enumerate(prompts)]
    keys = rng.sample_keys(seed, torch.arange(len(prompts)))
    out = LocalEngine(model, settings, batch_size).generate(ids, keys)
    written = [
        [token for token, kept in zip(tokens, keep, strict=True) if kept]
        for tokens, keep in zip(out.completions, out.written.tolist(), strict=True)
    ]
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]
    rows = zip(prompts, texts, out.finished.tolist(), out.nfe, strict=True)
    return [GeneratedText(prompt, text, finished, forwards) for prompt, text, finished, forwards in rows]


def _encode(tokenizer: Any, row: int, prompt: str, chat: bool) -> list[int]:
    if not prompt.strip():
        raise DataError(f"prompt {row} is empty; expected some text")
    if chat:
        message = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
