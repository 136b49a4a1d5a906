"""From a YAML file and overrides to a checked `Recipe`. Every mistake is a `RecipeError` that says where it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dllm_rl.errors import RecipeError
from dllm_rl.recipe.explain import explain
from dllm_rl.recipe.schema import Recipe
from dllm_rl.recipe.yaml12 import parse
from dllm_rl.shipped import find


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        source: path of a YAML file, or of a run's ``recipe.json``; or the recipe itself as a dict.
        overrides: ``key.path=value``, applied in order; values are YAML 1.2, so ``eval=null`` drops a section.
    """
    name = "recipe" if isinstance(source, Mapping) else str(source)
    tree = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else _read(Path(source))
    for override in overrides:
        _apply(tree, override)
    try:
        return Recipe.model_validate(tree, strict=True)  # strict: no text becomes a number, in any section
    except ValidationError as error:
        raise RecipeError(explain(error, Recipe, name)) from None


def recipe_file(name: str | Path) -> Path:
    """The recipe that `name` means: a file, else a shipped one, as `recipes/quickstart.yaml` or just `quickstart`."""
    bare = "/" not in str(name) and not str(name).endswith((".yaml", ".yml", ".json"))
    found = find(f"recipes/{name}.yaml" if bare else str(name))
    if found is not None and (found / "recipe.json").is_file():
        raise RecipeError(f"{name}: a folder of a run; its recipe is {found / 'recipe.json'}")
    if found is None or not found.is_file():
        raise RecipeError(f"{name}: no such file")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        text = recipe_file(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not text in UTF-8 (byte {error.start})") from None
    tree = parse(text, str(path))
    expected = f"a recipe has the keys {', '.join(Recipe.model_fields)}"
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: not a recipe: it holds {type(tree).__name__}, and {expected}")
    if tree.keys().isdisjoint(Recipe.model_fields):
        raise RecipeError(f"{path}: not a recipe: its keys are {', '.join(list(tree)[:4]) or 'none'}, and {expected}")
    if path.suffix != ".json":
        _require_marker(text, path)
    return tree


def _require_marker(text: str, path: Path) -> None:
    """Some recipes are valid Python but for ``---``: where dllm-rl is not installed they would exit 0, untrained."""
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    number, first = next((number, line) for number, line in lines if line and not line.startswith("#"))
    if first.split(maxsplit=1)[0] != "---":
        raise RecipeError(
            f"{path}: line {number} is {first!r}; put a line with --- before it, the first after any comments"
        )


def _apply(tree: dict[str, Any], override: str) -> None:
    key_path, equals, text = override.partition("=")
    if not equals or not all(key_path.split(".")):
        raise RecipeError(f"override {override!r}: expected key.path=value, such as train.max_steps=10")
    *parents, key = key_path.split(".")
    section = tree
    for depth, parent in enumerate(parents, 1):
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise RecipeError(
                f"override {override!r}: {'.'.join(parents[:depth])} is {section!r}, which has no keys; "
                f"give the whole of it, as {'.'.join(parents[:depth])}={{key: value, ...}}"
            )
    section[key] = parse(text, f"override {override!r}")
