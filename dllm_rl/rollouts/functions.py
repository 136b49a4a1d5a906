"""Functions that a recipe names: `file.py:function`, or a dotted path."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from dllm_rl.errors import RecipeError
from dllm_rl.shipped import import_file, locate


def load_function(reference: str, base: Path | None = None) -> Callable[..., Any]:
    """The function that `reference` names.

    Args:
        reference: `rewards/gsm8k.py:correctness`, `package.module:function` or `package.module.function`.
        base: folder of the recipe; see `shipped.locate`.

    Raises:
        RecipeError: no such file, module or function.
    """
    place, colon, name = reference.rpartition(":")
    if not colon and reference.endswith(".py"):
        raise RecipeError(f"{reference}: names no function; expected {reference}:function")
    if not colon:
        place, _, name = reference.rpartition(".")
    module = import_file(locate(place, base)) if place.endswith(".py") else _import_module(place, reference)
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(f"{reference}: no function {name!r} there.{_near(name, module)}")
    return function  # type: ignore[no-any-return]


def _import_module(place: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (ImportError, ValueError) as error:
        raise RecipeError(
            f"{reference}: cannot import {place or 'a module without a name'} ({error}); expected file.py:function or "
            "package.module.function"
        ) from error


def _near(name: str, module: ModuleType) -> str:
    public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(name, public, n=1)
    return f" Did you mean {near[0]}?" if near else f" It has {', '.join(sorted(public)) or 'none'}."
