"""The model of a recipe: loaded, or made in code for toy runs."""

from __future__ import annotations

from pathlib import Path

from dllm_rl.errors import RecipeError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.load import load_model
from dllm_rl.models.lora import add_lora
from dllm_rl.recipe.schema import ModelSection, Recipe
from dllm_rl.rollouts.shipped import shipped_root
from dllm_rl.toys.model import tiny_llada
from dllm_rl.toys.tokenizer import character_tokenizer

_TOY = "toy:llada"


def make_model(recipe: Recipe, base: Path) -> DiffusionModel:
    """The policy with its tokenizer and, where the algorithm needs one, its reference.

    Raises:
        RecipeError: there is no tokenizer, or a procedural model is not known.
        CheckpointError: the weights cannot be loaded.
    """
    section = recipe.model
    model = _toy(section) if section.path.startswith("toy:") else _loaded(section, base)
    if model.tokenizer is None:
        raise RecipeError(
            f"model.path: {section.path} has no tokenizer files, and training reads and writes text; put a tokenizer "
            "beside the weights or set model.tokenizer"
        )
    if recipe.algorithm.needs_reference and section.lora is None and section.adapter is None:
        model.make_reference_copy()
    return model


def _loaded(section: ModelSection, base: Path) -> DiffusionModel:
    if section.options:
        raise RecipeError(f"model.options: only for procedural models such as {_TOY}; remove it")
    return load_model(
        locate_folder(section.path, base),
        dtype=section.dtype,
        lora=section.lora,
        adapter=section.adapter,
        trainable=True,
        attn_implementation=section.attn_implementation,
        tokenizer=section.tokenizer,
        quantization=section.quantization,
        revision=section.revision,
    )


def locate_folder(name: str, base: Path) -> str:
    """The folder that `name` means in the working directory, beside the recipe or among the shipped files, else `name`
    itself: a hub id, or a folder that is not there.
    """
    for folder in (Path.cwd(), base, shipped_root()):
        if (folder / name).is_dir():
            return str(folder / name)
    return name


def _toy(section: ModelSection) -> DiffusionModel:
    if section.path != _TOY:
        raise RecipeError(f"model.path: no procedural model {section.path!r}; there is {_TOY}")
    options = dict(section.options)
    alphabet = options.pop("alphabet", None)
    try:
        model = tiny_llada(tokenizer=character_tokenizer(alphabet) if alphabet else None, **options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model.options: {error}") from error
    if section.lora is None:
        return model
    return DiffusionModel(add_lora(model.network, section.lora), model.spec, model.tokenizer)
