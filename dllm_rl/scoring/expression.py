"""Exact arithmetic over + - * / and parentheses: a small parser, because a model's output must not meet `eval`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 256
"""Characters. With four operators and no powers, this bounds every value to 256 digits: no input is slow."""

_TOKEN = re.compile(r"\s*(?:(?P<number>\d+)|(?P<symbol>[-+*/()]))")


class ExpressionError(ValueError):
    """The text is not an arithmetic expression, or has no value."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Value of an expression and the integers written in it, from left to right."""

    value: Fraction
    numbers: tuple[int, ...]


def evaluate_expression(text: str) -> Evaluated:
    """Evaluate in exact rationals.

    Args:
        text: non-negative integers, + - * / (binary, or a leading sign) and parentheses.

    Raises:
        ExpressionError: anything else is in the text, it is too long, or it divides by zero.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"{len(text)} characters; at most {MAX_LENGTH} are read")
    parser = _Parser(_tokens(text))
    value = parser.sum()
    if parser.peek() is not None:
        raise ExpressionError(f"unexpected {parser.peek()!r}")
    return Evaluated(value, tuple(parser.numbers))


def _tokens(text: str) -> list[str]:
    tokens, at, text = [], 0, text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or not found[0].isascii():
            raise ExpressionError(f"unexpected {text[at:].lstrip()[:1]!r}")
        tokens.append(found["number"] or found["symbol"])
        at = found.end()
    return tokens


class _Parser:
    """Recursive descent; `MAX_LENGTH` bounds the recursion."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0
        self.numbers: list[int] = []

    def peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self) -> str:
        token = self.peek()
        if token is None:
            raise ExpressionError("it ends too early")
        self.at += 1
        return token

    def sum(self) -> Fraction:
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        value = self.factor()
        while self.peek() in ("*", "/"):
            if self.take() == "*":
                value *= self.factor()
            else:
                divisor = self.factor()
                if divisor == 0:
                    raise ExpressionError("it divides by zero")
                value /= divisor
        return value

    def factor(self) -> Fraction:
        token = self.take()
        if token in ("+", "-"):
            value = self.factor()
            return -value if token == "-" else value
        if token == "(":
            value = self.sum()
            if self.take() != ")":
                raise ExpressionError("a parenthesis is not closed")
            return value
        if not token.isdigit():
            raise ExpressionError(f"unexpected {token!r}")
        self.numbers.append(int(token))
        return Fraction(int(token))
