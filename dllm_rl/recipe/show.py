"""A recipe with every value and what it means, as YAML that can be run again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from dllm_rl.errors import RecipeError
from dllm_rl.recipe.schema import Recipe, TrainSection
from dllm_rl.recipe.yaml12 import parse


def as_json(recipe: Recipe) -> str:
    """Every value, defaults included; `load_recipe` reads it back to an equal recipe."""
    return json.dumps(recipe.model_dump(mode="json"), indent=2)


def as_yaml(recipe: Recipe) -> str:
    """The same with each field's sentence above it."""
    return "\n".join(["---", *_section(recipe, "")]) + "\n"


def _section(section: BaseModel, indent: str) -> Iterator[str]:
    fields = type(section).model_fields
    for name, field in sorted(fields.items(), key=lambda item: item[0] != "type"):  # which member of a union it is
        if field.description:
            yield f"{indent}# {' '.join(field.description.split())}"
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _section(value, indent + "  ")
        else:
            yield f"{indent}{name}: {_flow(value)}"
    if isinstance(section, TrainSection):
        for name, value in section.arguments.items():
            yield f"{indent}{name}: {_flow(value)}"


def _flow(value: Any) -> str:
    """A value on one line: bare text where it reads back as the same text, JSON (which is YAML 1.2) otherwise."""
    if isinstance(value, str):
        try:
            bare = parse(f"key: {value}", "") == {"key": value}
        except RecipeError:
            bare = False
        return value if bare else json.dumps(value)
    return json.dumps(value)
