"""The model of a recipe: loaded, or made in code for toy runs."""

from __future__ import annotations

import os
from pathlib import Path

from dllm_rl.errors import RecipeError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.load import load_model
from dllm_rl.models.lora import add_lora
from dllm_rl.models.policy_head import attach_head, head_of
from dllm_rl.recipe.fit import check_heads, head_settings
from dllm_rl.recipe.schema import Recipe
from dllm_rl.shipped import find
from dllm_rl.toys.model import tiny_llada
from dllm_rl.toys.tokenizer import character_tokenizer

_TOY = "toy:llada"


def make_model(recipe: Recipe, base: Path, reads: bool = True) -> DiffusionModel:
    """The policy with its tokenizer.

    Args:
        reads: whether this process reads the weights; see `load_model`.

    Raises:
        RecipeError: there is no tokenizer, a procedural model is not known, or a sampler asks a head that it lacks.
        CheckpointError: the weights cannot be loaded.
    """
    section = recipe.model
    model = _toy(recipe) if section.path.startswith("toy:") else _loaded(recipe, base, reads)
    if model.tokenizer is None:
        raise RecipeError(
            f"model.path: {section.path} has no tokenizer files, and training reads and writes text; put a tokenizer "
            "beside the weights or set model.tokenizer"
        )
    if not model.spec.eos_ids:
        raise RecipeError(f"model.path: {section.path} names no end of text (eos_token_id), which completions end with")
    try:
        check_heads(recipe, head_of(model.network))
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return model


def needs_reference_copy(recipe: Recipe) -> bool:
    """Whether switching an adapter off would not give back the model that training starts from."""
    return recipe.algorithm.needs_reference and (recipe.model.lora is None or recipe.model.adapter is not None)


def needs_weights_everywhere(recipe: Recipe) -> bool:
    """Whether a process could not make the model without reading its weights: it is drawn, quantized, or an adapter's
    first values come from them.
    """
    section = recipe.model
    first_values = (section.lora or {}).get("init_lora_weights", True)
    own = first_values in (True, False, "gaussian")
    return section.path.startswith("toy:") or section.quantization is not None or not own


def _loaded(recipe: Recipe, base: Path, reads: bool) -> DiffusionModel:
    section = recipe.model
    if section.options:
        raise RecipeError(f"model.options: only for procedural models such as {_TOY}; remove it")
    quantized_on = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # the trainer cannot move quantized weights
    return load_model(
        str(find(section.path, base) or section.path),
        dtype=section.dtype,
        device=quantized_on if section.quantization else "cpu",
        lora=section.lora,
        adapter=section.adapter,
        trainable=True,
        lora_dropout_allowed=recipe.algorithm.allows_dropout,
        attn_implementation=section.attn_implementation,
        tokenizer=section.tokenizer,
        quantization=section.quantization,
        revision=section.revision,
        head=head_settings(recipe),
        reads=reads,
    )


def _toy(recipe: Recipe) -> DiffusionModel:
    section = recipe.model
    if section.path != _TOY:
        raise RecipeError(f"model.path: no procedural model {section.path!r}; there is {_TOY}")
    options = dict(section.options)
    alphabet = options.pop("alphabet", None)
    try:
        model = tiny_llada(tokenizer=character_tokenizer(alphabet) if alphabet else None, **options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model.options: {error}") from error
    head = head_settings(recipe)
    if head is not None:
        attach_head(model.network, head)
    if section.lora is None:
        return model
    network = add_lora(model.network, section.lora, allow_dropout=recipe.algorithm.allows_dropout)
    return DiffusionModel(network, model.spec, model.tokenizer)
