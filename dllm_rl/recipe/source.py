"""Rows of a recipe, as the trainer takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dllm_rl.errors import DataError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.recipe.rewards import make_panel
from dllm_rl.recipe.schema import DecodingSection, Recipe
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.functions import load_function
from dllm_rl.rollouts.rows import Row, read_rows
from dllm_rl.rollouts.text import decode_until_eos
from dllm_rl.shipped import find
from dllm_rl.training.data import Example, LengthRule, PromptFormat, PromptRow, pair_rows, prompt_rows, text_rows
from dllm_rl.training.source import DemonstrationSource, ExampleSource, RolloutSource, Source

Rows = Sequence[PromptRow] | Sequence[Example]


def load_data(recipe: Recipe, base: Path, model: DiffusionModel) -> Rows:
    """Read, convert and check every row before anything is trained.

    Raises:
        DataError: a file, a column or a row cannot be used.
    """
    section = recipe.data
    rows = _raw_rows(recipe, base)
    if section.map is not None:
        function = load_function(section.map, base)
        rows = [function(row) for row in rows]
    form = PromptFormat(model.tokenizer, section.prompt, section.system, section.path)
    rule = LengthRule(
        max_prompt=section.max_prompt_length,
        max_total=model.max_positions,
        completion=recipe.rollout.gen_length if recipe.rollout else 0,
        drop=section.overlong == "drop",
    )
    if recipe.algorithm.source == "rollouts":
        return prompt_rows(rows, form, rule)
    eos_id = model.spec.eos_ids[0]
    if recipe.algorithm.source == "pairs":
        return pair_rows(rows, form, rule, eos_id)
    return text_rows(rows, form, rule, eos_id)


def _raw_rows(recipe: Recipe, base: Path) -> list[Row]:
    section = recipe.data
    scheme, _, toy = section.path.partition(":")
    if scheme != "toy":
        return read_rows(find(section.path, base) or section.path, name=section.name, split=section.split)[
            : section.limit
        ]
    if toy != "arithmetic":
        raise DataError(f"data.path: no procedural source {section.path!r}; there is toy:arithmetic")
    from dllm_rl.toys.arithmetic import rows as arithmetic_rows

    try:
        return arithmetic_rows(section.split, **section.options)[: section.limit]
    except TypeError as error:
        raise DataError(f"data.options: {error}") from error


def settings_of(section: DecodingSection) -> RolloutSettings:
    """Decoding settings of a recipe's section."""
    return RolloutSettings(
        sampler=section.sampler,
        gen_length=section.gen_length,
        steps=section.steps,
        block_length=section.block_length,
        temperature=section.temperature,
        cfg_scale=section.cfg_scale,
        options=section.options,
    )


def make_source(
    recipe: Recipe, base: Path, rows: Any, model: DiffusionModel, seed: int, device: torch.device
) -> Source:
    """The source that the recipe's algorithm learns from.

    Args:
        rows: as `load_data` made them.
        device: where the model will be once the trainer has it.
    """
    if recipe.rollout is None:
        return ExampleSource(rows, seed, model.spec.eos_ids[0], device)
    engine = LocalEngine(model, settings_of(recipe.rollout), recipe.rollout.batch_size)
    if recipe.reward is None:
        return DemonstrationSource(rows, seed, engine, recipe.algorithm, recipe.rollout.num_generations, device)
    panel = make_panel(recipe.reward, base)
    return RolloutSource(
        rows, seed, engine, panel, recipe.algorithm, recipe.rollout.num_generations, decode_until_eos(model), device
    )
