"""What `dllm-rl check` tells without a model: files a recipe names exist, and what its rewards give its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dllm_rl.errors import MissingSettingError, RecipeError
from dllm_rl.evaluation.task import load_task
from dllm_rl.recipe.fit import check_options
from dllm_rl.recipe.gold import judged_by_hand
from dllm_rl.recipe.rewards import make_panel
from dllm_rl.recipe.schema import Recipe, RewardSection, RolloutSection
from dllm_rl.rollouts.functions import load_function
from dllm_rl.rollouts.rows import read_rows
from dllm_rl.shipped import find

LOCAL = (".jsonl", ".json", ".csv", ".parquet")
ROWS = 20
"""Rows on which rewards are tried: about as many completions as a small update has."""


def check(recipe: Recipe, base: Path) -> Iterator[str]:
    """Load what the recipe names, and yield a line for each thing found in order.

    Args:
        base: folder of the recipe.

    Raises:
        DllmRlError: something is missing, or a reward function cannot judge the first rows.
    """
    check_options(recipe)
    yield from _model(recipe.model.path, base)
    rows = _first_rows(recipe, base)
    if rows:
        yield f"data: {recipe.data.path} has the columns {', '.join(rows[0])}"
        _refuse_missing_hints(recipe, rows[0])
    if recipe.reward is not None and recipe.rollout is not None:
        yield from _rewards(recipe, recipe.reward, recipe.rollout, rows, base)
    if recipe.eval is not None:
        paths = recipe.eval.paths | ({recipe.eval.tasks[0]: recipe.eval.path} if recipe.eval.path else {})
        tasks = [load_task(task, base, path=paths.get(task)) for task in recipe.eval.tasks]
        yield f"eval: {', '.join(task.name for task in tasks)}"


def _rewards(
    recipe: Recipe, reward: RewardSection, rollout: RolloutSection, rows: list[dict[str, Any]], base: Path
) -> Iterator[str]:
    try:
        panel = make_panel(reward, base)
    except MissingSettingError as error:  # a server that a run needs, and whoever only checks need not have
        yield f"reward: not tried, and a run would stop here: {error}"
        return
    yield f"reward: {', '.join(function.name for function in (*panel.functions, *panel.gates))}"
    if rows:
        yield from judged_by_hand(panel, rows, [_prompt(recipe, row) for row in rows], rollout)
    else:
        yield f"reward: not tried, since {recipe.data.path} is no local file; data.path=FILE tries some rows"


def _model(path: str, base: Path) -> Iterator[str]:
    """A hub id is owner/name; what looks like anything else must be a folder."""
    if path.startswith("toy:") or find(path, base) is not None:
        return
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise RecipeError(
            f"model.path: there is no folder {path}; give a checkpoint's folder, a run's output or a hub id"
        )
    yield f"model: {path} is no folder here, so it is looked for on the hub"


def _refuse_missing_hints(recipe: Recipe, row: dict[str, Any]) -> None:
    hints = recipe.algorithm.inpainting
    for key in ("reference_column", "answer_column") if hints is not None else ():
        name = getattr(hints, key)
        if name not in row:
            raise RecipeError(
                f"algorithm.hints.{key}: {name!r} is no column of {recipe.data.path}, which has {', '.join(row)}"
            )


def _first_rows(recipe: Recipe, base: Path) -> list[dict[str, Any]]:
    """The first rows of a local file, mapped; none for other sources, which may be far away."""
    change = load_function(recipe.data.map, base) if recipe.data.map else None
    if not recipe.data.path.endswith(LOCAL):
        return []
    rows = read_rows(find(recipe.data.path, base) or recipe.data.path)[:ROWS]
    return [made for row in rows if (made := change(row)) is not None] if change else rows


def _prompt(recipe: Recipe, row: dict[str, Any]) -> str:
    """A row's prompt as text; whether it becomes a chat is the tokenizer's affair."""
    try:
        return str(row.get("prompt", "") if recipe.data.prompt is None else recipe.data.prompt.format_map(row))
    except (KeyError, ValueError, IndexError) as error:
        raise RecipeError(
            f"data.prompt: cannot be filled ({type(error).__name__}: {error}); the rows have {', '.join(row)}"
        ) from error
