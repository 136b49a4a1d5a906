"""A JSON schema as text that is known beforehand and slots for the values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_rl.errors import RecipeError
from dllm_rl.rollouts.json_reference import ANNOTATIONS, plain, wrong
from dllm_rl.rollouts.json_slot import IS_OF, LIMITS, Slot, dumps

Piece = str | Slot

VALUE_TOKENS = 16
"""Positions of a value whose schema does not say, as in the paper; see `scaffold`."""
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
"""What a schema of each kind may hold besides its type and annotations. Room is for slots only."""
ALWAYS = {"type", *ANNOTATIONS} - {"x-tokens"}
KNOWN = ALWAYS.union(*KEYWORDS.values())


def read_schema(path: Path) -> Any:
    """The schema in a .json file.

    Raises:
        RecipeError: there is no such file, it is not strict JSON, or an object in it has a name twice.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse, object_pairs_hook=_unique)
    except OSError as error:
        raise RecipeError(f"schema {path}: cannot be read: {error}; expected a file with a JSON schema") from error
    except ValueError as error:  # of encodings too
        raise RecipeError(f"schema {path}: not strict JSON: {error}") from error


def compile_schema(schema: Any, value_tokens: int = VALUE_TOKENS) -> tuple[Piece, ...]:
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
    try:
        dumps(schema)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"the schema is not JSON: {error}") from error
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
        schema, seen = plain(schema, self.root, path, seen)
        kind, nullable = _kind(schema, path)
        if kind == "object":
            yield from self._object(schema, path, seen)
        elif kind == "array":
            yield from self._array(schema, path, seen)
        elif kind in ("null", "const"):
            _refuse_other_types([schema.get("const")], schema, path)
            yield dumps(schema.get("const"))
        else:
            slot = self._slot(kind, nullable, schema, path)
            yield from ('"', slot, '"') if slot.quoted else (slot,)

    def _slot(self, kind: str, nullable: bool, schema: Mapping[str, Any], path: str) -> Slot:
        tokens = schema.get("x-tokens", self.value_tokens)
        if not IS_OF["integer"](tokens) or tokens < 1:
            raise wrong(path, f"x-tokens is {tokens!r}; expected a whole number, at least 1")
        choices = _choices(schema, nullable, path) if kind == "enum" else ()
        texts = all(isinstance(choice, str) for choice in choices) if choices else kind == "string"
        return Slot(path, kind, tokens, texts and not nullable, nullable, choices, _limits(schema, path))

    def _object(self, schema: Mapping[str, Any], path: str, seen: tuple[str, ...]) -> Iterator[Piece]:
        properties, required = schema.get("properties"), schema.get("required", [])
        if not isinstance(properties, Mapping) or not all(isinstance(name, str) for name in properties):
            raise wrong(path, "an object without 'properties'; list them by name, nothing else can be written")
        if not isinstance(required, Sequence) or isinstance(required, str):
            raise wrong(path, f"required is {required!r}; expected a list of names")
        missing = next((name for name in required if name not in list(properties)), None)
        if missing is not None:
            raise wrong(path, f"{missing!r} is required and is not among the properties")
        if not isinstance(schema.get("additionalProperties", False), bool):
            raise wrong(path, "keyword 'additionalProperties' is supported as true or false only; list the properties")
        yield "{"
        for place, (name, part) in enumerate(properties.items()):
            yield f"{', ' if place else ''}{dumps(name)}: "
            yield from self.compile(part, f"{path}.{name}", seen)
        yield "}"

    def _array(self, schema: Mapping[str, Any], path: str, seen: tuple[str, ...]) -> Iterator[Piece]:
        yield "["
        for place, part in enumerate(_parts(schema, path)):
            yield ", " if place else ""
            yield from self.compile(part, f"{path}[{place}]", seen)
        yield "]"


def _parts(schema: Mapping[str, Any], path: str) -> list[Any]:
    """The schemas of an array's items, one each."""
    first, rest = schema.get("prefixItems"), schema.get("items", False)
    least, most = (_length(schema, word, path) for word in ("minItems", "maxItems"))
    if first is not None:
        if not isinstance(first, list):
            raise wrong(path, f"prefixItems is {first!r}; expected a list of schemas")
        if rest is not False or {least, most} - {None, len(first)}:
            raise wrong(path, f"{len(first)} prefixItems and more or fewer; expected an array of just these")
        return first
    if least is None or least != most or rest is False:
        raise wrong(
            path,
            f"an array with minItems {least} and maxItems {most}; expected 'items' and equal numbers, or "
            "'prefixItems': a skeleton has a fixed length",
        )
    return [rest] * least


def _kind(schema: Mapping[str, Any], path: str) -> tuple[str, bool]:
    """What the schema describes, and whether it may be null instead; every keyword in it is one for that."""
    nullable = schema.get("nullable", False)
    if not isinstance(nullable, bool):
        raise wrong(path, f"nullable is {nullable!r}; expected true or false")
    types = _types(schema, path)
    others = [one for one in types if one != "null"]
    kind = next((word for word in ("const", "enum") if word in schema), others[0] if others else "null")
    if kind not in ("const", "enum"):
        if len(others) > 1:
            raise _wrong_type(schema, path)
        nullable = bool(others) and (nullable or "null" in types)
    if (unknown := next((word for word in schema if word not in ALWAYS | KEYWORDS[kind]), None)) is not None:
        known = ", ".join(sorted(KEYWORDS[kind])) or "none"
        raise wrong(path, f"keyword {unknown!r} is not supported for {kind!r}; supported there: {known}")
    if nullable and kind in ("object", "array"):
        raise wrong(path, f"an {kind} that may be null; expected values only to be so: a skeleton is there or is not")
    return kind, nullable


def _types(schema: Mapping[str, Any], path: str) -> list[str]:
    """The types that a value may be of, null apart; all of them where the schema does not say."""
    given = schema.get("type", list(IS_OF))
    types = given if isinstance(given, list) else [given]
    if not types or not all(isinstance(one, str) and one in IS_OF for one in types):
        raise _wrong_type(schema, path)
    return types


def _wrong_type(schema: Mapping[str, Any], path: str) -> RecipeError:
    if "type" not in schema and (unknown := next((word for word in schema if word not in KNOWN), None)) is not None:
        return wrong(path, f"keyword {unknown!r} is not supported")
    return wrong(
        path, f"type is {schema.get('type')!r}; expected one of {', '.join(IS_OF)}, or a list of one and 'null'"
    )


def _choices(schema: Mapping[str, Any], nullable: bool, path: str) -> tuple[Any, ...]:
    choices = schema["enum"]
    if not isinstance(choices, list) or not choices:
        raise wrong(path, f"enum is {choices!r}; expected a list of at least one choice")
    for choice in choices:
        if isinstance(choice, Mapping | list):
            raise wrong(path, f"the choice {choice!r} is no string, number, boolean or null")
    _refuse_other_types([choice for choice in choices if choice is not None or not nullable], schema, path)
    return tuple(choices)


def _refuse_other_types(values: Sequence[Any], schema: Mapping[str, Any], path: str) -> None:
    types = _types(schema, path)
    for value in values:
        if not any(IS_OF[one](value) for one in types):
            raise wrong(path, f"the choice {value!r} is no {' or '.join(types)}")


def _limits(schema: Mapping[str, Any], path: str) -> dict[str, float]:
    limits = {word: schema[word] for word in LIMITS if word in schema}
    for word, bound in limits.items():
        if word.endswith("Length"):
            _length(schema, word, path)
        elif not IS_OF["number"](bound):
            raise wrong(path, f"{word} is {bound!r}; expected a number")
    return limits


def _length(schema: Mapping[str, Any], word: str, path: str) -> int | None:
    length = schema.get(word)
    if word in schema and (not isinstance(length, int) or isinstance(length, bool) or length < 0):
        raise wrong(path, f"{word} is {length!r}; expected a length")
    return length


def _refuse(name: str) -> Any:
    raise ValueError(f"found {name}, which is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return dict(pairs)
