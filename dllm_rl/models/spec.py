"""From a configuration and a tokenizer to the constants that decoding and likelihoods need."""

from __future__ import annotations

from typing import Any

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import ModelContractError


def spec_of(
    config: Any, tokenizer: Any | None, *, logit_shift: int = 0, block_size: int | None = None
) -> DiffusionSpec:
    """Constants of a model.

    `eos_ids` are the configuration's own (LLaDA: `<|endoftext|>`, also the padding). An end-of-turn token is part of
    the text that a chat model writes, and is not among them.

    `forbidden_ids` are the mask and every row of the output head that is no token: ids that the tokenizer lacks, or,
    without a tokenizer, ids from the configuration's `vocab_size` on.

    Raises:
        ModelContractError: when the mask id or an EOS id is missing or lies outside the vocabulary.
    """
    rows: int = config.vocab_size
    mask_id = config.mask_token_id
    eos = config.eos_token_id
    eos_ids = tuple(eos) if isinstance(eos, (list, tuple)) else () if eos is None else (eos,)
    for name, token in (("mask_token_id", mask_id), *(("eos_token_id", token) for token in eos_ids)):
        if token is None or not 0 <= token < rows:
            raise ModelContractError(
                f"the configuration's {name} is {token}; expected an id from 0 to {rows - 1}. Set it in config.json"
            )
    if mask_id in eos_ids:
        raise ModelContractError(f"token {mask_id} is both the mask and an EOS; expected different ids")
    known = (
        set(range(getattr(config, "text_vocab_size", rows)))
        if tokenizer is None
        else set(tokenizer.get_vocab().values())
    )
    beyond = sorted(token for token in known if token >= rows)
    if beyond:
        raise ModelContractError(
            f"the tokenizer has ids up to {beyond[-1]}, the network has {rows} rows; "
            "this tokenizer belongs to another checkpoint"
        )
    forbidden = (set(range(rows)) - known) | {mask_id}
    return DiffusionSpec(mask_id, eos_ids, logit_shift, block_size, "mask", tuple(sorted(forbidden)))
