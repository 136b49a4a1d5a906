"""Dataclasses made from their names and options, as a command line or a recipe gives them."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

from dllm_rl.errors import RecipeError

Made = TypeVar("Made")


def make(kind: str, known: Mapping[str, type[Made]], name: str, options: Mapping[str, Any]) -> Made:
    """The dataclass among `known` that is called `name`, with `options` set. Whole numbers may stand for real ones.

    Args:
        kind: what they are, for messages.

    Raises:
        RecipeError: there is no such name, it has no such option, or an option is of the wrong type or value.
    """
    if name not in known:
        raise RecipeError(f"no {kind} is called {name!r}; {_suggest(name, list(known))}")
    chosen = known[name]
    types = get_type_hints(chosen)
    values = {}
    for option, value in options.items():
        if option not in types:
            raise RecipeError(f"{kind} {name!r} has no option {option!r}; {_suggest(option, list(types))}")
        whole = isinstance(value, int) and not isinstance(value, bool)
        number = float(value) if whole and not isinstance(value, types[option]) else value
        if not isinstance(number, types[option]):  # the text "no" would count as true
            expected = getattr(types[option], "__name__", types[option])
            raise RecipeError(f"{kind} {name!r}: option {option} is {value!r}; expected {expected}")
        values[option] = number
    return chosen(**values)


def _suggest(word: str, known: list[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return (
        f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known) or 'none: it takes no options'}"
    )
