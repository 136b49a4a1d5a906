from __future__ import annotations

import math
from typing import Any

import pytest

from dllm_rl.errors import RecipeError
from dllm_rl.recipe.yaml12 import parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("5.0e-7", 5e-7),
        (".5", 0.5),
        ("1.", 1.0),
        ("-2E+3", -2000.0),
        ("-.inf", -math.inf),
        ("12", 12),
        ("-0", 0),
        ("+7", 7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("~", None),
        ("Null", None),
        ("", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("2026-11-23", "2026-11-23"),
        ("1e", "1e"),
        (".", "."),
        ("'1e-6'", "1e-6"),
        ("{a: [1, no]}", {"a": [1, "no"]}),
        ("<<: 1", {"<<": 1}),
    ],
)
def test_scalars_are_those_of_yaml_12(text: str, value: Any) -> None:
    found = parse(text, "x")
    assert found == value and type(found) is type(value)


def test_nan() -> None:
    assert math.isnan(parse(".nan", "x"))


def test_anchors_are_kept() -> None:
    assert parse("a: &x {b: 1}\nc: *x", "x") == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "x.yaml: the key c is given twice, on lines 3 and 5; keep one"),
        ("a: 1\n1: 2\n", "x.yaml: line 2: the key 1 is not text; quote it"),
        ("a: [1\nb: 2\n", "x.yaml: line 2: not valid YAML: "),
        ("--- 1\n--- 2\n", "x.yaml: line 2: not valid YAML: but found another document"),
        ("a: !!python/object:os.system 1", "x.yaml: line 1: not valid YAML: could not determine a constructor"),
        ("a: \x07", "x.yaml: not valid YAML: "),
    ],
)
def test_mistakes_take_one_line_that_says_where(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text, "x.yaml")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
