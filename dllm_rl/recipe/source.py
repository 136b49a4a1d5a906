"""Rows of a recipe, as the trainer takes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dllm_rl.errors import DataError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.recipe.rewards import make_panel
from dllm_rl.recipe.schema import DecodingSection, Recipe
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.functions import load_function
from dllm_rl.rollouts.rewards import JUDGED
from dllm_rl.rollouts.rows import Row, read_rows
from dllm_rl.rollouts.text import decode_until_eos
from dllm_rl.shipped import find
from dllm_rl.toys import arithmetic, column_sum, small_sudoku
from dllm_rl.training.data import Example, LengthRule, PromptFormat, PromptRow, pair_rows, prompt_rows, text_rows
from dllm_rl.training.inpaint import make_inpainter
from dllm_rl.training.source import DemonstrationSource, ExampleSource, RolloutSource, Source
from dllm_rl.training.traces import with_traces

log = logging.getLogger(__name__)

Rows = Sequence[PromptRow] | Sequence[Example]

_TOYS: Mapping[str, Callable[..., list[Row]]] = {
    "arithmetic": arithmetic.rows,
    "column_sum": column_sum.rows,
    "small_sudoku": small_sudoku.rows,
}
"""Procedural sources, as `toy:NAME`."""


def load_data(recipe: Recipe, base: Path, model: DiffusionModel) -> Rows:
    """Read, convert and check every row before anything is trained.

    Raises:
        DataError: a file, a column or a row cannot be used.
    """
    section = recipe.data
    rows = raw_rows(recipe, base)
    if section.map is not None:
        rows = mapped(rows, load_function(section.map, base), section.path)
    form = PromptFormat(model.tokenizer, section.prompt, section.system, section.path)
    rule = LengthRule(
        max_prompt=section.max_prompt_length,
        max_total=model.max_positions,
        completion=recipe.rollout.gen_length if recipe.rollout else 0,
        drop=section.overlong == "drop",
        max_completion=section.max_completion_length,
    )
    if recipe.algorithm.source == "rollouts":
        prompts = prompt_rows(rows, form, rule)
        hints = recipe.algorithm.inpainting
        return prompts if hints is None else with_traces(prompts, hints, model.tokenizer, section.path)
    eos_id = model.spec.eos_ids[0]
    if recipe.algorithm.source == "pairs":
        return pair_rows(rows, form, rule, eos_id)
    return text_rows(rows, form, rule, eos_id)


def mapped(rows: Sequence[Row], function: Callable[[Row], Row | None], source: str) -> list[Row]:
    """What `data.map` makes of the rows. Those for which it returns None are left out, and counted.

    Raises:
        DataError: none is left.
    """
    kept = [made for row in rows if (made := function(row)) is not None]
    if not kept:
        raise DataError(f"{source}: data.map left out all {len(rows)} rows")
    if len(kept) < len(rows):
        log.warning("%s: data.map left out %d of %d rows", source, len(rows) - len(kept), len(rows))
    return kept


def raw_rows(recipe: Recipe, base: Path) -> list[Row]:
    """Rows as the data have them, before `data.map`."""
    section = recipe.data
    scheme, _, toy = section.path.partition(":")
    if scheme != "toy":
        return read_rows(find(section.path, base) or section.path, name=section.name, split=section.split)[
            : section.limit
        ]
    if toy not in _TOYS:
        there = " and ".join(f"toy:{name}" for name in _TOYS)
        raise DataError(f"data.path: no procedural source {section.path!r}; there are {there}")
    try:
        return _TOYS[toy](section.split, **section.options)[: section.limit]
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
    settings = replace(settings_of(recipe.rollout), record_predictions=recipe.algorithm.judges_steps)
    engine = LocalEngine(model, settings, recipe.rollout.batch_size)
    if recipe.reward is None:
        return DemonstrationSource(rows, seed, engine, recipe.algorithm, recipe.rollout.num_generations, device)
    panel = make_panel(recipe.reward, base)
    panel.refuse_signatures([*JUDGED, *rows[0].columns])
    generations = recipe.rollout.num_generations
    inpainter = None
    if recipe.algorithm.inpainting is not None:
        inpainter = make_inpainter(
            recipe.algorithm.inpainting,
            recipe.reward.functions,
            [function.name for function in panel.functions],
            num_generations=generations,
            gen_length=recipe.rollout.gen_length,
        )
    return RolloutSource(
        rows, seed, engine, panel, recipe.algorithm, generations, decode_until_eos(model), device, inpainter
    )
