"""Over-denoised rows of a recipe's data: those that the model had right on the way, and wrong in the end.

Source: He et al. (MDPO), https://arxiv.org/abs/2508.13148, which trains on 2,840 and 3,586 such rows of 40,000.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from dllm_rl.errors import DataError, RecipeError
from dllm_rl.recipe.model import make_model
from dllm_rl.recipe.rewards import make_panel
from dllm_rl.recipe.schema import Recipe
from dllm_rl.recipe.source import load_data, raw_rows, settings_of
from dllm_rl.rng import sample_keys
from dllm_rl.rollouts.engine import LocalEngine
from dllm_rl.rollouts.text import decode_until_eos
from dllm_rl.training.data import PromptRow
from dllm_rl.training.steps import Judge, make_judge, predicted_completions


@dataclass(frozen=True, slots=True)
class Judged:
    """A row that the model has answered greedily."""

    line: str
    """The row as the data have it, JSON."""
    steps: list[float]
    """Reward of each step's one-step completion."""
    final: float
    """Reward of the completion."""


@dataclass(slots=True)
class Tally:
    """How many rows were answered, and how."""

    rows: int = 0
    right_at_the_end: int = 0
    right_on_the_way: int = 0
    over_denoised: int = 0

    def __str__(self) -> str:
        return (
            f"{self.rows} rows: {self.right_at_the_end} right at the end, {self.right_on_the_way} right at some step, "
            f"{self.over_denoised} of these wrong at the end"
        )


def judged_rows(recipe: Recipe, base: Path, *, batch_size: int, device: str) -> Iterator[list[Judged]]:
    """Every row of the recipe's data, answered greedily by its model and its rollout's sampler; a batch at a time.

    What cannot be used is told now, before the first batch is asked for.

    Raises:
        RecipeError: the recipe's method does not sample, so that it says neither how to answer nor what is right.
        DataError: a row cannot be used, or cannot be written as JSON.
    """
    if recipe.rollout is None or recipe.reward is None:
        raise RecipeError(
            f"over-denoised rows are found by sampling and judging, and {recipe.algorithm.type} learns from "
            f"{recipe.algorithm.source}; give a recipe with the sections rollout and reward, such as recipes/mdpo.yaml"
        )
    lines = [_line(row, place, recipe.data.path) for place, row in enumerate(raw_rows(recipe, base))]
    model = make_model(recipe, base)
    rows: Sequence[Any] = load_data(recipe, base, model)
    model.network.to(device)
    engine = LocalEngine(model, replace(settings_of(recipe.rollout), temperature=0.0, record_predictions=True))
    judge = make_judge(make_panel(recipe.reward, base), decode_until_eos(model), model.spec.eos_ids)
    batches = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    return (_answered(engine, judge, batch, lines) for batch in batches)


def _answered(engine: LocalEngine, judge: Judge, batch: Sequence[PromptRow], lines: list[str]) -> list[Judged]:
    keys = sample_keys(0, torch.tensor([row.place for row in batch])).to(engine.model.device)
    out = engine.generate([row.ids for row in batch], keys)
    completions = zip(predicted_completions(out), out.completions, strict=True)
    rewards = judge(batch, [[*steps, final] for steps, final in completions], 0)
    return [Judged(lines[row.place], steps, final) for row, (*steps, final) in zip(batch, rewards, strict=True)]


def write_over_denoised(batches: Iterator[list[Judged]], file: TextIO, right: float) -> Iterator[Tally]:
    """Write each row that had a reward of at least `right` at some step, and less at the end; the tally so far."""
    tally = Tally()
    for batch in batches:
        for judged in batch:
            at_the_end, on_the_way = judged.final >= right, max(judged.steps) >= right
            tally.rows += 1
            tally.right_at_the_end += at_the_end
            tally.right_on_the_way += on_the_way
            if on_the_way and not at_the_end:
                tally.over_denoised += 1
                file.write(judged.line + "\n")
        file.flush()
        yield tally


def _line(row: dict[str, Any], place: int, source: str) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}, row {place}: cannot be written as JSON: {error}; leave such columns out") from error
