"""Countdown: reach a target with every given number exactly once and + - * /."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from dllm_rl.errors import DataError
from dllm_rl.scoring.answers import final_answer
from dllm_rl.scoring.characters import plain_characters
from dllm_rl.scoring.expression import Evaluated, ExpressionError, evaluate_expression
from dllm_rl.scoring.result import EMPTY_ANSWER, NO_ANSWER, Score

_SPELLINGS = (
    {
        "\\times": "*",
        "\\cdot": "*",
        "\\div": "/",
        "\u00d7": "*",
        "·": "*",
        "÷": "/",
        "\u2013": "-",
    }
    | dict.fromkeys("\u2217\u22c5\u2219\u2715\u2716\u2a2f", "*")
    | dict.fromkeys("\u2215\u2044", "/")
)
_LETTER_TIMES = re.compile(r"(?<=[\d)])\s*[xX]\s*(?=[\d(])")
_NOISE = re.compile(r"\\left|\\right|\\[,;! ]|\$|\\[()\[\]]")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")


def score_countdown(completion: str, row: Mapping[str, Any]) -> Score:
    """1 when the answer's expression uses every number exactly once and its value is the target, else 0."""
    numbers, target = read_row(row)
    answer = final_answer(completion)
    if not answer:
        return NO_ANSWER if answer is None else EMPTY_ANSWER
    try:
        found = read_expression(answer)
    except ExpressionError as error:
        return Score.wrong(answer, f"not an arithmetic expression: {error}")
    if sorted(found.numbers) != sorted(numbers):
        return Score.wrong(answer, f"uses {sorted(found.numbers)}, expected {sorted(numbers)}, each exactly once")
    if found.value != target:
        return Score.wrong(answer, f"its value is {found.value}, expected {target}")
    return Score.right(answer, f"its value is {target}, with every number used once")


def read_expression(answer: str) -> Evaluated:
    """The expression in an answer, LaTeX spelling allowed; `= value` may follow, or `value =` precede, if it is right.

    Raises:
        ExpressionError: it is not an expression, or what follows `=` is not its value.
    """
    answer = _LETTER_TIMES.sub("*", plain_characters(answer)).rstrip(" .,")
    for spelling, symbol in _SPELLINGS.items():
        answer = answer.replace(spelling, symbol)
    expression, equals, claim = _plain_fractions(_NOISE.sub(" ", answer)).partition("=")
    found = evaluate_expression(expression)
    if not equals:
        return found
    other = evaluate_expression(claim)
    if other.value != found.value:
        raise ExpressionError(f"it says {claim.strip()}, but its value is {found.value}")
    return other if expression.strip().isdigit() else found


def _plain_fractions(text: str) -> str:
    r"""`\frac{a}{b}` as `((a)/(b))`, innermost first."""
    found = 1
    while found and len(text) < 1000:
        text, found = _FRACTION.subn(r"((\1)/(\2))", text)
    return text


def read_row(row: Mapping[str, Any]) -> tuple[list[int], int]:
    """Numbers and target of a row in either published form: {numbers, target}, or {input: "a,b,c", output}.

    Raises:
        DataError: the columns are missing or do not hold integers.
    """
    names = ("numbers", "target") if "numbers" in row else ("input", "output")
    try:
        numbers, target = (row[name] for name in names)
        if isinstance(numbers, str):
            numbers = numbers.strip("[]() ").replace(",", " ").split()
        return [_integer(number) for number in numbers], _integer(target)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"countdown row {dict(row)!r}: expected numbers (integers) and target, or input ('a,b,c') and output"
        ) from error


def _integer(value: Any) -> int:
    """The integer that a number or its text is; a fraction is an error, not rounded."""
    exact = Fraction(value)
    if exact.denominator != 1:
        raise ValueError(f"{value!r} is no integer")
    return exact.numerator
