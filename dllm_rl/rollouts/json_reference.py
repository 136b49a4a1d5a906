"""Schemas without references, and without an `anyOf` that only says that a value may be null."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm_rl.errors import RecipeError
from dllm_rl.rollouts.json_slot import dumps

ANNOTATIONS = {
    *("title", "description", "default", "examples", "x-tokens"),
    *("$schema", "$id", "$comment", "$defs", "definitions"),
}
"""Keywords that ask nothing of a value, so that one beside a reference may say otherwise than what it names."""


def plain(schema: Any, root: Any, path: str, seen: tuple[str, ...] = ()) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The schema itself, and the references that led to it, those in `seen` first.

    Raises:
        RecipeError: it is no schema, a reference leads nowhere or back to itself, an `anyOf` says something else, or
            keywords beside one of the two ask for something of their own.
    """
    if not isinstance(schema, Mapping):
        raise wrong(path, f"found {schema!r}; expected a schema, a mapping of keywords")
    if "$ref" in schema:
        name = schema["$ref"]
        if name in seen:
            raise wrong(path, f"{name!r} contains itself; a skeleton is finite, write the levels out")
        merged = _merged(_referred(name, root, path), _without(schema, "$ref"), path)
        return plain(merged, root, path, (*seen, name))
    if "anyOf" in schema:
        beside = _without(schema, "anyOf")
        if word := next((word for word in beside if word not in {*ANNOTATIONS, "nullable"}), None):
            raise wrong(
                path, f"keyword {word!r} is not supported beside 'anyOf'; put it into the schema that is not null"
            )
        return plain({**_or_null(schema["anyOf"], path), **beside, "nullable": True}, root, path, seen)
    return schema, seen


def wrong(path: str, what: str) -> RecipeError:
    """The error that tells what is wrong with a schema, and where."""
    return RecipeError(f"schema at {path}: {what}")


def _without(schema: Mapping[str, Any], dropped: str) -> dict[str, Any]:
    return {word: value for word, value in schema.items() if word != dropped}


def _merged(target: Mapping[str, Any], beside: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Both at once. A value has to satisfy both, so that neither may overrule the other."""
    for word in (target.keys() & beside.keys()) - ANNOTATIONS:
        if dumps(target[word]) != dumps(beside[word]):
            raise wrong(
                path,
                f"keyword {word!r} is {beside[word]!r} beside a $ref to a schema where it is {target[word]!r}; a value "
                "would have to satisfy both, say it once",
            )
    return {**target, **beside}


def _referred(name: Any, root: Any, path: str) -> Mapping[str, Any]:
    found = root
    if not isinstance(name, str) or not name.startswith("#/"):
        raise wrong(path, f"$ref is {name!r}; expected one within the schema, such as '#/$defs/Address'")
    for word in (part.replace("~1", "/").replace("~0", "~") for part in name[2:].split("/")):
        if not isinstance(found, Mapping) or word not in found:
            raise wrong(path, f"$ref is {name!r}, and the schema has nothing there")
        found = found[word]
    if not isinstance(found, Mapping):
        raise wrong(path, f"$ref is {name!r}, which is no schema")
    return found


def _or_null(either: Any, path: str) -> Mapping[str, Any]:
    """The schema that stands in an `anyOf` beside null."""
    others = [other for other in either if other != {"type": "null"}] if isinstance(either, list) else []
    if len(others) != 1 or len(either) != 2 or not isinstance(others[0], Mapping):
        raise wrong(path, "keyword 'anyOf' is supported for one schema and {'type': 'null'} only")
    return others[0]
