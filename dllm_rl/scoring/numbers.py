"""Reading one exact number from a short answer, or refusing: hedges, ranges and clock times are not numbers."""

from __future__ import annotations

import re
from fractions import Fraction

from dllm_rl.scoring.expression import ExpressionError, evaluate_expression
from dllm_rl.scoring.latex import plain

MAX_LENGTH = 200
"""Characters; a longer answer is not a number."""

_DECIMAL = r"(?:\d{1,3}(?:(?:,\s?\d{3})+|(?: \d{3})+)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_TIMES_TEN = r"\s*(?:\\times|\\cdot|[*x])\s*10\s*\^\s*"
_NUMBER = re.compile(
    rf"(?P<before>\D*?)(?P<sign>[-+]?)\s*"
    rf"(?:(?P<whole>\d+)\s+(?P<top>\d+)\s*/\s*(?P<bottom>\d+)"
    rf"|(?P<number>{_DECIMAL})(?:(?:[eE]|{_TIMES_TEN})(?P<power>[-+]?\d{{1,2}}))?(?:\s*/\s*(?P<divisor>{_DECIMAL}))?)"
    rf"(?:\s*(?P<scale>hundred|thousand|million|billion|trillion)\b)?(?P<after>\D*)"
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_LATEX_FRACTION = re.compile(r"\\frac\s*(?:\{\s*([^{}]+?)\s*\}|(\d))\s*(?:\{\s*([^{}]+?)\s*\}|(\d))")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\s*\^\s*\{?[23]\}?(?=\W|$)")
_NAME = re.compile(r"\\?[A-Za-z][A-Za-z ']*(?:_\{?\w+\}?)?(?:\([A-Za-z0-9, ]*\))?")
_HEDGE = re.compile(
    r"\b(?:or|not|no|isn't|between|either|neither|less|more|fewer|greater|least|most|maybe|perhaps|possibly|about|around"
    r"|approximately|approx|roughly|nearly|almost|over|under|above|below|than|to|from|plus|minus|times)\b",
    re.IGNORECASE,
)
_OPERATOR = re.compile(
    r"\b(?:sin|cos|tan|sec|csc|cot|log|ln|exp|sqrt|root|pi|mod|squared|cubed|factorial|choose|infinity|inf|or|and|half)\b"
    r"|\b[ap]\.?m\b|o'clock",
    re.IGNORECASE,
)
_WORDS_BEFORE = re.compile(r"(?:[A-Za-z]{2,}|[aAI]\b|[\s'\",.:(*])*")
_WORDS_AFTER = re.compile(r"(?:[A-Za-z]{2,}|(?:\s|/\s?)[amgLlshCFK]\b|[\s'\",.()*/²³]|(?<=[A-Za-z])-(?=[A-Za-z]))*")


def read_number(text: str) -> Fraction | None:
    """The exact value of an answer that is one number, else None.

    Ignored around it: currency, percent and degree signs, thousands separators, units and other words, `x =`, and a
    calculation that really gives the number (`6 * 7 = 42`). Words of scale count (`2 million`). None for anything that
    leaves a choice open (`41 or 42`, `40-45`, `about 42`), clock times (`3:45`, `5 pm`), and more than one number.
    """
    if len(text) > MAX_LENGTH:
        return None
    *left, right = _plain_number(text).split("=")
    if left and right.strip() and _is_name(right):  # `42 = x`
        right, left[-1] = left[-1], right
    value = _read(right)
    if value is None or not all(_is_name(side) or _evaluate(side) == value for side in left):
        return None
    return value


def _plain_number(text: str) -> str:
    def spell(found: re.Match[str]) -> str:
        top, bottom = found[1] or found[2], found[3] or found[4]
        return f" {top}/{bottom}"

    text = _LATEX_FRACTION.sub(spell, plain(text))
    text = re.sub(r"([-+])\s+(?=\d)", r"\1", text)
    return _UNIT_POWER.sub("", text).replace("{", "").replace("}", "").strip()


def _is_name(side: str) -> bool:
    return not side.strip() or _NAME.fullmatch(side.strip()) is not None


def _evaluate(side: str) -> Fraction | None:
    """Value of a calculation that was written out, if it is one."""
    side = side.replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/").replace(",", "")
    try:
        return evaluate_expression(side).value
    except ExpressionError:
        return _read(side)


def _read(text: str) -> Fraction | None:
    found = _NUMBER.fullmatch(text.strip())
    if found is None or not _only_words(found):
        return None
    if found["whole"] is not None:
        return _signed(found, _ratio(found["top"], found["bottom"]), Fraction(found["whole"]), Fraction(1))
    value = _ratio(found["number"], found["divisor"] or "1")
    scale = Fraction(10) ** int(found["power"] or 0) * _SCALES.get(found["scale"] or "", 1)
    return _signed(found, value, Fraction(0), scale)


def _only_words(found: re.Match[str]) -> bool:
    before, after = found["before"], found["after"]
    if _HEDGE.search(before) or _OPERATOR.search(before) or _OPERATOR.search(after):
        return False
    if found["sign"] and before.strip() and not re.search(r"(?:is|are|was|equals|of|:)\s*$", before):
        return False  # `x - 5` is not -5
    return bool(_WORDS_BEFORE.fullmatch(before) and _WORDS_AFTER.fullmatch(after))


def _ratio(top: str, bottom: str) -> Fraction | None:
    numerator, denominator = (Fraction(re.sub(r"[,\s]", "", part)) for part in (top, bottom))
    return numerator / denominator if denominator else None


def _signed(found: re.Match[str], value: Fraction | None, whole: Fraction, scale: Fraction) -> Fraction | None:
    if value is None:
        return None
    total = (whole + value) * scale
    return -total if found["sign"] == "-" else total
