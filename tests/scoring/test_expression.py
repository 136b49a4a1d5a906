"""The parser against Python's own arithmetic, on expressions that are known to be harmless."""

from __future__ import annotations

import contextlib
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_rl.scoring.expression import MAX_LENGTH, ExpressionError, evaluate_expression

numbers = st.integers(0, 99).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" + ", "-", "*", " / "]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"(-{text})"),
    ),
    max_leaves=8,
)


@given(expressions)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_agrees_with_python(text: str) -> None:
    in_fractions = re.sub(r"\d+", lambda found: f"Fraction({int(found[0])})", text)
    try:
        expected = eval(in_fractions, {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ExpressionError, match="divides by zero"):
            evaluate_expression(text)
        return
    found = evaluate_expression(text)
    assert found.value == expected
    assert list(found.numbers) == [int(number) for number in re.findall(r"\d+", text)]


@given(st.text(alphabet="0123456789+-*/() .,=xe_\n\u0663", max_size=30))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_text_is_a_value_or_an_expression_error(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        assert isinstance(evaluate_expression(text).value, Fraction)


def test_too_long_is_refused() -> None:
    assert evaluate_expression("1" + "+1" * ((MAX_LENGTH - 1) // 2)).value == (MAX_LENGTH + 1) // 2
    with pytest.raises(ExpressionError, match="characters"):
        evaluate_expression("1" + "+1" * MAX_LENGTH)
    assert evaluate_expression("(" * 127 + "1" + ")" * 127).value == 1
