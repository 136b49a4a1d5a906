"""Room for one value of a JSON text, and how to read what a model wrote into it."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
ESCAPE = re.compile(
    r'\\(?:["\\/bfnrt]|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u(?![dD][89a-fA-F])[0-9a-fA-F]{4})'
)
"""What JSON calls an escape, but for halves of a surrogate pair, which are no character."""
IS_OF: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "object": lambda value: isinstance(value, Mapping),
        "array": lambda value: isinstance(value, list),
        "string": lambda value: isinstance(value, str),
        "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
        "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
        "boolean": lambda value: isinstance(value, bool),
        "null": lambda value: value is None,
    }
)
"""The types of a schema: whether a value is of one. A number written with a point or an exponent is no integer."""
LIMITS: Mapping[str, Callable[[Any, Any], bool]] = MappingProxyType(
    {
        "minLength": lambda text, least: len(text) >= least,
        "maxLength": lambda text, most: len(text) <= most,
        "minimum": operator.ge,
        "maximum": operator.le,
        "exclusiveMinimum": operator.gt,
        "exclusiveMaximum": operator.lt,
    }
)
"""The bounds that a value can have: whether it keeps to one."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one value."""

    path: str
    """Where it is, such as `$.items[0].name`."""
    kind: str
    """ "string", "number", "integer", "boolean" or "enum"."""
    tokens: int
    """Positions it takes."""
    quoted: bool = False
    """The quotes around it belong to the skeleton."""
    nullable: bool = False
    choices: tuple[Any, ...] = ()
    limits: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def expected(self) -> str:
        """What may be written, in words."""
        bounds = " and ".join(f"{name} {bound}" for name, bound in self.limits.items())
        what = {
            "enum": "one of " + ", ".join(map(dumps, self.choices)),
            "boolean": "true or false",
            "string": "text" if self.quoted else "a text in double quotes",
        }.get(self.kind, f"a finite {self.kind} as JSON writes it")
        return what + (f" with {bounds}" if bounds else "") + (", or null" if self.nullable else "")

    @property
    def foreseen(self) -> tuple[str, ...]:
        """What is known beforehand to be written, perhaps."""
        values = (
            *self.choices,
            *((True, False) if self.kind == "boolean" else ()),
            *((None,) if self.nullable else ()),
        )
        return tuple(dumps(value)[1:-1] if self.quoted else dumps(value) for value in values)

    def read(self, written: str) -> tuple[str, bool]:
        """What `written` is in JSON, without the quotes that are in the skeleton, and whether the schema allows it.

        `null` stands for what is not of the slot's type. Between quotes everything is text: JSON's escapes are what
        they mean, and any other character is itself.
        """
        if self.quoted:
            text = string_of(written)
            return dumps(text)[1:-1], self._allows(text)
        scalar = _scalar(written)
        if scalar is None or not self._is_of(scalar[1]):
            return "null", False
        text, value = scalar
        return text, value is None or self._allows(value)

    def _is_of(self, value: Any) -> bool:
        if value is None:
            return self.nullable or None in self.choices
        if self.kind == "enum":
            return any(_type(value) == _type(choice) for choice in self.choices)
        return IS_OF[self.kind](value)

    def _allows(self, value: Any) -> bool:
        chosen = not self.choices or any((_type(value), value) == (_type(choice), choice) for choice in self.choices)
        return chosen and all(LIMITS[name](value, bound) for name, bound in self.limits.items())


def string_of(written: str) -> str:
    """The text that stands between two quotes, whatever it is: JSON's escapes are read, all else is literal."""
    return ESCAPE.sub(lambda escape: str(json.loads(f'"{escape[0]}"')), written)


def dumps(value: Any) -> str:
    """A value as JSON, letters of any script as they are.

    Raises:
        ValueError: it holds a number that is not finite, or itself.
        TypeError: it holds something that JSON does not have.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _scalar(written: str) -> tuple[str, Any] | None:
    """A text in quotes, a number, true, false or null, as JSON and as a value; None if it is nothing of these."""
    if len(written) > 1 and written[0] == written[-1] == '"':
        text = string_of(written[1:-1])
        return dumps(text), text
    # What a double cannot hold would become infinite, which JSON does not have.
    number = NUMBER.fullmatch(written) and math.isfinite(float(written))
    return (written, json.loads(written)) if number or written in ("true", "false", "null") else None


def _type(value: Any) -> str:
    """Integers are numbers: 1 and 1.0 are the same choice, 1 and true are not."""
    return next(name for name in ("string", "boolean", "number", "null") if IS_OF[name](value))
