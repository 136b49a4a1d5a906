"""Whether a completion keeps to the layout <reasoning>...</reasoning><answer>...</answer>."""

from __future__ import annotations

import re

_TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
_SOFT = re.compile(r"\s*<reasoning>.*?</reasoning>\s*<answer>.*?</answer>", re.DOTALL)
_STRICT = re.compile(r"<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n?", re.DOTALL)
_PLACES = ("<reasoning>\n", "\n</reasoning>\n", "\n<answer>\n", "\n</answer>")


def is_soft(text: str) -> bool:
    """Starts with reasoning, then the answer, with any white space; each tag exactly once."""
    return _once(text) and _SOFT.match(text) is not None


def is_strict(text: str) -> bool:
    """Exactly the layout, each tag once and on a line of its own, nothing before or after."""
    return _once(text) and _STRICT.fullmatch(text) is not None


def tag_credit(text: str) -> float:
    """A quarter for each tag found once, on a line of its own, minus 0.002 per character after the answer; at least 0.

    Source: Zhao et al. (d1), https://arxiv.org/abs/2504.12216, released reward code.
    Deviations: on a scale of 1 (theirs is 0.5); text after the answer is charged once, not twice; the credit does not
    fall below 0.
    """
    credit = sum(text.count(place) == 1 for place in _PLACES) / len(_PLACES)
    _, closed, rest = text.rpartition("</answer>")
    return max(0.0, credit - 0.002 * len(rest.strip())) if closed else credit


def _once(text: str) -> bool:
    return all(text.count(tag) == 1 for tag in _TAGS)
