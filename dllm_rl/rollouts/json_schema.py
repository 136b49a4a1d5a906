"""A JSON schema as text that is known beforehand and slots for the values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dllm_rl.errors import RecipeError
from dllm_rl.rollouts.json_slot import LIMITS, Slot, dumps

Piece = str | Slot

ANNOTATIONS = {"type", "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs"}
"""Keywords that any schema may have; but for the type they ask for nothing here."""
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
KEYWORDS: Mapping[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "nullable", "x-tokens"},
    "number": {*BOUNDS, "nullable", "x-tokens"},
    "integer": {*BOUNDS, "nullable", "x-tokens"},
    "boolean": {"nullable", "x-tokens"},
    "null": set(),
    "enum": {"enum", "nullable", "x-tokens"},
    "const": {"const"},
}
IS_OF: Mapping[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
TYPES = ("object", "array", *IS_OF)


def compile_schema(schema: Any, value_tokens: int = 16) -> tuple[Piece, ...]:
    """Cut the JSON that a schema describes into what is known beforehand and slots for the values.

    Every property is written, in the order of the schema, whether it is required or not: a skeleton cannot leave one
    out. Supported are objects, arrays of a fixed length, strings, numbers, integers, booleans, null, `enum`, `const`,
    bounds, values that may be null (`nullable`, a type list with "null", or `anyOf` with it), and references within the
    schema. `x-tokens` is the room of one value.

    Args:
        value_tokens: positions of a value whose schema does not say.

    Raises:
        RecipeError: a keyword is not supported or does not make sense; the message names it and where it stands.
    """
    if value_tokens < 1:
        raise RecipeError(f"value_tokens is {value_tokens}; expected at least 1")
    pieces: list[Piece] = []
    for piece in _Compiler(schema, value_tokens).compile(schema, "$", ()):
        last = pieces[-1] if pieces else None
        if isinstance(piece, str) and isinstance(last, str):
            pieces[-1] = last + piece
        else:
            pieces.append(piece)
    return tuple(pieces)


@dataclass(frozen=True, slots=True)
class _Compiler:
    root: Any
    value_tokens: int

    def compile(self, schema: Any, path: str, seen: tuple[str, ...]) -> Iterator[Piece]:
        """The pieces of the schema at `path`; `seen` are the references that led there."""
        schema, seen = self._plain(schema, path, seen)
        kind, nullable = _kind(schema, path)
        unknown = next((word for word in schema if word not in ANNOTATIONS | KEYWORDS[kind]), None)
        if unknown is not None:
            known = ", ".join(sorted(KEYWORDS[kind])) or "none"
            raise _wrong(path, f"keyword {unknown!r} is not supported for {kind!r}; supported there: {known}")
        if kind == "object":
            yield from self._object(schema, path, seen)
        elif kind == "array":
            yield from self._array(schema, path, seen)
        elif kind in ("null", "const"):
            yield dumps(schema.get("const"))
        else:
            choices = _choices(schema, path) if kind == "enum" else ()
            quoted = not nullable and (kind == "string" or all(isinstance(choice, str) for choice in choices or (0,)))
            slot = Slot(path, kind, self._tokens(schema, path), quoted, nullable, choices, _limits(schema, path))
            yield from ('"', slot, '"') if quoted else (slot,)

    def _plain(self, schema: Any, path: str, seen: tuple[str, ...]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        """The schema without references, and without an `anyOf` that only says that it may be null."""
        if not isinstance(schema, Mapping):
            raise _wrong(path, f"found {schema!r}; expected a schema, a mapping of keywords")
        if "$ref" in schema:
            name = schema["$ref"]
            if name in seen:
                raise _wrong(path, f"{name!r} contains itself; a skeleton is finite, write the levels out")
            target = self._referred(name, path)
            beside = {word: value for word, value in schema.items() if word != "$ref"}
            return self._plain({**target, **beside}, path, (*seen, name))
        if "anyOf" in schema:
            either = list(schema["anyOf"])
            others = [other for other in either if other != {"type": "null"}]
            if len(either) != 2 or len(others) != 1 or not isinstance(others[0], Mapping):
                raise _wrong(path, "keyword 'anyOf' is supported for one schema and {'type': 'null'} only")
            beside = {word: value for word, value in schema.items() if word != "anyOf"}
            return self._plain({**others[0], **beside, "nullable": True}, path, seen)
        return schema, seen

    def _referred(self, name: Any, path: str) -> Mapping[str, Any]:
        found = self.root
        if not isinstance(name, str) or not name.startswith("#/"):
            raise _wrong(path, f"$ref is {name!r}; expected one within the schema, such as '#/$defs/Address'")
        for word in name[2:].split("/"):
            if not isinstance(found, Mapping) or word not in found:
                raise _wrong(path, f"$ref is {name!r}, and the schema has nothing there")
            found = found[word]
        if not isinstance(found, Mapping):
            raise _wrong(path, f"$ref is {name!r}, which is no schema")
        return found

    def _object(self, schema: Mapping[str, Any], path: str, seen: tuple[str, ...]) -> Iterator[Piece]:
        properties = schema.get("properties")
        if not isinstance(properties, Mapping):
            raise _wrong(path, "an object without 'properties'; list them, nothing else can be written")
        missing = next((name for name in schema.get("required", ()) if name not in properties), None)
        if missing is not None:
            raise _wrong(path, f"{missing!r} is required and is not among the properties")
        if not isinstance(schema.get("additionalProperties", False), bool):
            raise _wrong(path, "keyword 'additionalProperties' is supported as true or false only; list the properties")
        yield "{"
        for place, (name, part) in enumerate(properties.items()):
            yield f"{', ' if place else ''}{dumps(name)}: "
            yield from self.compile(part, f"{path}.{name}", seen)
        yield "}"

    def _array(self, schema: Mapping[str, Any], path: str, seen: tuple[str, ...]) -> Iterator[Piece]:
        first, rest = schema.get("prefixItems"), schema.get("items", False)
        least, most = schema.get("minItems"), schema.get("maxItems")
        if first is not None:
            if rest is not False or {least, most} - {None, len(first)}:
                raise _wrong(path, f"{len(first)} prefixItems and more or fewer; expected an array of just these")
            parts = list(first)
        elif least is None or least != most or rest is False:
            raise _wrong(
                path,
                f"an array with minItems {least} and maxItems {most}; expected 'items' and equal numbers, or "
                "'prefixItems': a skeleton has a fixed length",
            )
        elif not IS_OF["integer"](least) or least < 0:
            raise _wrong(path, f"minItems is {least!r}; expected a length")
        else:
            parts = [rest] * least
        yield "["
        for place, part in enumerate(parts):
            yield ", " if place else ""
            yield from self.compile(part, f"{path}[{place}]", seen)
        yield "]"

    def _tokens(self, schema: Mapping[str, Any], path: str) -> int:
        tokens = schema.get("x-tokens", self.value_tokens)
        if not IS_OF["integer"](tokens) or tokens < 1:
            raise _wrong(path, f"x-tokens is {tokens!r}; expected a whole number, at least 1")
        return int(tokens)


def _kind(schema: Mapping[str, Any], path: str) -> tuple[str, bool]:
    """What the schema describes, and whether it may be null instead."""
    nullable = schema.get("nullable", False)
    if not isinstance(nullable, bool):
        raise _wrong(path, f"nullable is {nullable!r}; expected true or false")
    for word in ("const", "enum"):
        if word in schema:
            return word, nullable
    given = schema.get("type")
    types = given if isinstance(given, list) else [given]
    others = [one for one in types if one != "null"] or ["null"]
    kind = others[0]
    if len(others) != 1 or kind not in TYPES:
        raise _wrong(path, f"type is {given!r}; expected one of {', '.join(TYPES)}, or a list of one and 'null'")
    nullable = kind != "null" and (nullable or "null" in types)
    if nullable and kind in ("object", "array"):
        raise _wrong(path, f"an {kind} that may be null; expected values only to be so: a skeleton is there or is not")
    return kind, nullable


def _choices(schema: Mapping[str, Any], path: str) -> tuple[Any, ...]:
    choices = schema["enum"]
    if not isinstance(choices, list) or not choices:
        raise _wrong(path, f"enum is {choices!r}; expected a list of at least one choice")
    given = schema.get("type", list(IS_OF))
    types = given if isinstance(given, list) else [given]
    for choice in choices:
        if not any(one in IS_OF and IS_OF[one](choice) for one in types):
            raise _wrong(path, f"the choice {choice!r} is no {' or '.join(map(str, types))}")
    return tuple(choices)


def _limits(schema: Mapping[str, Any], path: str) -> dict[str, float]:
    limits = {word: schema[word] for word in LIMITS if word in schema}
    for word, bound in limits.items():
        length = word.endswith("Length")
        if not IS_OF["integer" if length else "number"](bound) or (length and bound < 0):
            raise _wrong(path, f"{word} is {bound!r}; expected a {'length' if length else 'number'}")
    return limits


def _wrong(path: str, what: str) -> RecipeError:
    return RecipeError(f"schema at {path}: {what}")
