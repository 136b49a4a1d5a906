"""Frames on pipes, and plain data in JSON.

What comes from the candidate is read by `decode` alone: it builds nothing but exact built-in values, so that no method
of the candidate's runs where it is judged.
"""

from __future__ import annotations

import collections.abc
import json
import numbers
import os
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_HEADER = 4


class Closed(Exception):
    """The other end is gone, or sends more than is read."""


def send(descriptor: int, payload: bytes) -> None:
    """Write one frame whole."""
    view = memoryview(len(payload).to_bytes(_HEADER, "big") + payload)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int, most: int = 1 << 31) -> bytes:
    """Read one frame and not a byte more.

    Raises:
        Closed: the stream ended, or the frame is longer than `most` bytes.
    """
    size = int.from_bytes(_exactly(descriptor, _HEADER), "big")
    if size > most:
        raise Closed(f"sent {size} bytes at once; at most {most} are read")
    return _exactly(descriptor, size)


def _exactly(descriptor: int, size: int) -> bytes:
    chunks, left = [], size
    while left:
        chunk = os.read(descriptor, min(left, 1 << 16))
        if not chunk:
            raise Closed("ended")
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def encode(value: Any, keep: Callable[[Any], int]) -> bytes:
    """A value as JSON: plain data by value (subclasses as what they derive from), anything else as a number.

    Args:
        value: None, numbers, text, bytes, lists, tuples, sets and dictionaries of such go by value.
        keep: gives the number by which the other end may refer to an object.
    """
    return json.dumps(_tree(value, keep)).encode()


def _tree(value: Any, keep: Callable[[Any], int]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    for kind, write in _SCALARS:
        if isinstance(value, kind):
            return write(value)
    if isinstance(value, list):
        return [_tree(item, keep) for item in value]
    if isinstance(value, dict):
        return {"dict": [[_tree(key, keep), _tree(item, keep)] for key, item in dict.items(value)]}
    if isinstance(value, tuple | collections.abc.Set):
        name = "tuple" if isinstance(value, tuple) else "frozenset" if isinstance(value, frozenset) else "set"
        return {name: [_tree(item, keep) for item in value]}
    return {"object": keep(value)}


_SCALARS: list[tuple[type, Callable[[Any], Any]]] = [
    (str, lambda value: str.__str__(value)),
    (numbers.Integral, lambda value: {"int": hex(int(value))}),
    (float, float.__float__),
    (Fraction, lambda value: {"fraction": [hex(value.numerator), hex(value.denominator)]}),
    (Decimal, lambda value: {"decimal": str(value)}),
    (numbers.Real, float),
    (numbers.Complex, lambda value: {"complex": [complex(value).real, complex(value).imag]}),
    (bytes, lambda value: {"bytes": bytes(value).hex()}),
    (bytearray, lambda value: {"bytearray": bytes(value).hex()}),
]


def decode(payload: bytes, restore: Callable[[int], Any]) -> Any:
    """The value that `encode` wrote.

    Args:
        restore: what stands here for the object of a number.

    Raises:
        Closed: the bytes are not what `encode` writes.
    """
    try:
        return _value(json.loads(payload), restore)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        raise Closed(f"sent something else than a value ({type(error).__name__})") from error


def _value(tree: Any, restore: Callable[[int], Any]) -> Any:
    if isinstance(tree, list):
        return [_value(item, restore) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((name, content),) = tree.items()
    if name == "object":
        return restore(int(content))
    if name == "dict":
        return {_value(key, restore): _value(item, restore) for key, item in content}
    if name in ("tuple", "frozenset", "set"):
        content = [_value(item, restore) for item in content]
    return _READ[name](content)


_READ: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "frozenset": frozenset,
    "set": set,
    "int": lambda content: int(content, 16),
    "fraction": lambda content: Fraction(*(int(part, 16) for part in content)),
    "decimal": Decimal,
    "complex": lambda content: complex(*map(float, content)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
}
