"""Finding the answer in a completion: the last `<answer>` tag, else the last box, else, where a task says so, `####`.

Text outside these places is never searched for something that looks like an answer: a policy would learn to scatter
guesses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_OPEN, _CLOSE = "<answer>", "</answer>"
_BRACE = re.compile(r"\\+(?P<box>boxed|fbox)\s*\{|\\.|(?P<brace>[{}])", re.DOTALL)


def final_answer(completion: str, *, hash_marker: bool = False) -> str | None:
    """The answer a completion commits to, stripped; None when it has no place for one, empty when that is empty.

    Args:
        completion: text of the model's turn.
        hash_marker: with neither tag nor box, accept what follows the last `####` on its line, as GSM8K's own solutions
            have it.
    """
    tagged = last_tag(completion)
    if tagged is not None:
        boxed = last_box(tagged)
        return tagged if boxed is None else boxed
    boxed = last_box(completion)
    if boxed is None and hash_marker and "####" in completion:
        return completion.rpartition("####")[2].lstrip().partition("\n")[0].strip()
    return boxed


def last_tag(text: str) -> str | None:
    """Content of the last `<answer>`, stripped. A tag that is never closed runs to the end of the text."""
    _, tag, rest = text.rpartition(_OPEN)
    return rest.partition(_CLOSE)[0].strip() if tag else None


def last_box(text: str) -> str | None:
    r"""Content of the `\boxed{...}` or `\fbox{...}` that opens last and is closed, stripped. One linear pass."""
    open_braces: list[int | None] = []  # where a box's content starts; None for any other brace
    best: tuple[int, int] | None = None
    for found in _BRACE.finditer(text):
        if found["box"]:
            open_braces.append(found.end())
        elif found["brace"] == "{":
            open_braces.append(None)
        elif found["brace"] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None and (best is None or start > best[0]):
                best = (start, found.start())
    return text[best[0] : best[1]].strip() if best else None


def text_of(completion: str | Sequence[Mapping[str, str]]) -> str:
    """Text of a completion in either form that reward functions meet: a string, or chat messages (the last counts)."""
    if isinstance(completion, str):
        return completion
    return completion[-1]["content"] if completion else ""
