"""What a model wrote, as values: awkward texts, other types, bounds and choices."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_rl.rollouts.json_schema import Slot
from dllm_rl.rollouts.scaffold import scaffold_of
from tests.rollouts.scaffolds import BYTES, filled

INTEGER, NUMBER, BOOLEAN = {"type": "integer"}, {"type": "number"}, {"type": "boolean"}

AWKWARD = [
    ("", ""),
    ('say "hi"', 'say "hi"'),
    (r"say \"hi\"", 'say "hi"'),
    ('"', '"'),
    ("\\", "\\"),
    (r"C:\dir", r"C:\dir"),
    (r"C:\\dir", r"C:\dir"),
    (r"a\nb", "a\nb"),
    ("a\nb\tc", "a\nb\tc"),
    ("a\x00b", "a\x00b"),
    (r"\u00e9\u00E9", "éé"),
    (r"\ud83d\ude00", "😀"),
    (r"\ud83d", r"\ud83d"),
    (r"\ude00\ud83d", r"\ude00\ud83d"),
    (r"\u12", r"\u12"),
    ("é😀漢", "é😀漢"),
    ('"}, {"x": [', '"}, {"x": ['),
    ("{}", "{}"),
    ("null", "null"),
    (" padded ", "padded"),
    ("\\\\\\", "\\\\"),
    ("\u2028", ""),
    ("a\u2028b", "a\u2028b"),
]


@pytest.mark.parametrize(("written", "value"), AWKWARD, ids=ascii)
def test_awkward_texts(written, value):
    for schema in ({"type": "array", "prefixItems": [{"type": "string"}] * 2}, PAIR_OF_NULLABLE):
        scaffold = scaffold_of(schema, BYTES, value_tokens=64)
        raw = schema is PAIR_OF_NULLABLE
        one = f'"{written}"' if raw else written
        reading = scaffold.read(filled(scaffold, [one, '"x"' if raw else "x"]))
        assert reading.violations == []
        expected = value if not raw or written.strip() == written else written  # quotes keep white space
        assert reading.value == json.loads(reading.text) == [expected, "x"]


PAIR_OF_NULLABLE = {"type": "array", "prefixItems": [{"type": "string", "nullable": True}] * 2}


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_leaves_the_skeleton_whole(one, other):
    slot = Slot("$", "string", 1, quoted=True)
    text = '{"a": "' + slot.read(one)[0] + '", "b": "' + slot.read(other)[0] + '"}'
    value = json.loads(text)
    assert list(value) == ["a", "b"]
    assert json.dumps(one, ensure_ascii=False)[1:-1] == slot.read(json.dumps(one)[1:-1])[0]
    for kind in ("string", "integer", "number", "boolean", "enum"):
        json.loads(f"[{Slot('$', kind, 1, nullable=True, choices=('a', 1)).read(one)[0]}]")


@pytest.mark.parametrize(
    ("schema", "written", "value", "expected"),
    [
        (INTEGER, "12", 12, None),
        (INTEGER, "-0", 0, None),
        (INTEGER, "1.0", None, "a finite integer as JSON writes it"),
        (INTEGER, "007", None, "integer"),
        (INTEGER, "+5", None, "integer"),
        (INTEGER, "1,000", None, "integer"),
        (INTEGER, "٣", None, "integer"),
        (INTEGER, "", None, "integer"),
        (INTEGER, "9" * 5000, None, "integer"),
        (INTEGER, "true", None, "integer"),
        (INTEGER, "null", None, "integer"),
        ({"type": ["integer", "null"]}, "null", None, None),
        ({"type": ["integer", "null"]}, "nil", None, "integer as JSON writes it, or null"),
        ({"type": "integer", "minimum": 3}, "2", 2, "with minimum 3"),
        ({"type": "integer", "minimum": 3, "exclusiveMaximum": 5}, "5", 5, "minimum 3 and exclusiveMaximum 5"),
        ({"type": "integer", "minimum": 3, "exclusiveMaximum": 5}, "3", 3, None),
        (NUMBER, "1e3", 1000.0, None),
        (NUMBER, "-1.50", -1.5, None),
        (NUMBER, "1e999", None, "finite number"),
        (NUMBER, "NaN", None, "number"),
        (NUMBER, "Infinity", None, "number"),
        (NUMBER, ".5", None, "number"),
        (NUMBER, "5.", None, "number"),
        ({"type": "number", "exclusiveMinimum": 0}, "0", 0, "exclusiveMinimum 0"),
        ({"type": "number", "maximum": 0.5}, "0.6", 0.6, "maximum 0.5"),
        (BOOLEAN, "false", False, None),
        (BOOLEAN, "False", None, "true or false"),
        (BOOLEAN, "1", None, "true or false"),
        ({"type": "string", "maxLength": 2}, "abc", "abc", "text with maxLength 2"),
        ({"type": "string", "maxLength": 2}, r"a\n", "a\n", None),
        ({"type": "string", "minLength": 1}, "", "", "minLength 1"),
        ({"type": "string", "nullable": True}, "null", None, None),
        ({"type": "string", "nullable": True}, '"null"', "null", None),
        ({"type": "string", "nullable": True}, "abc", None, "a text in double quotes, or null"),
        ({"type": "string", "nullable": True}, '"', None, "a text in double quotes"),
        ({"enum": ["a", 'b"']}, "a", "a", None),
        ({"enum": ["a", 'b"']}, 'b"', 'b"', None),
        ({"enum": ["a", 'b"']}, "c", "c", r'one of "a", "b\""'),
        ({"enum": ["a", 'b"']}, "A", "A", "one of"),
        ({"enum": [1, True, "x", None]}, "1", 1, None),
        ({"enum": [1, True, "x", None]}, "true", True, None),
        ({"enum": [1, True, "x", None]}, '"x"', "x", None),
        ({"enum": [1, True, "x", None]}, "null", None, None),
        ({"enum": [1, True, "x", None]}, "x", None, 'one of 1, true, "x", null'),
        ({"enum": [1, True, "x", None]}, "[1]", None, "one of"),
        ({"enum": [1, 2]}, "3", 3, "one of 1, 2"),
        ({"enum": [1, 2]}, "1.0", 1.0, None),
        ({"enum": [1, 2]}, "true", None, "one of 1, 2"),
        ({"enum": [1, 2]}, '"1"', None, "one of 1, 2"),
        ({"enum": [1, 2]}, "null", None, "one of 1, 2"),
        ({"enum": [True]}, "1", None, "one of true"),
        ({"enum": [True, 2]}, "1", 1, "one of true, 2"),
        ({"enum": [True]}, "false", False, "one of true"),
        ({"enum": [1.5e10, None]}, "15e9", 15e9, None),
        ({"enum": ["a", None]}, '"b"', "b", 'one of "a", null'),
        ({"enum": ["\n", None]}, '"\n"', "\n", None),
        ({"enum": ["a"], "nullable": True}, "null", None, None),
        ({"enum": ["a"], "nullable": True}, '"b"', "b", 'one of "a", or null'),
    ],
    ids=lambda part: ascii(part)[:40],
)  # fmt: skip
def test_values_are_checked(schema, written, value, expected):
    pieces = {"type": "object", "properties": {"x": {**schema, "x-tokens": 5200}}}
    scaffold = scaffold_of(pieces, BYTES)
    reading = scaffold.read(filled(scaffold, [written]))
    assert reading.value == {"x": value} and type(reading.value["x"]) is type(value)
    assert json.loads(reading.text) == reading.value
    if expected is None:
        assert reading.violations == []
    else:
        (violation,) = reading.violations
        assert (violation.path, violation.found) == ("$.x", written)
        assert expected in violation.expected
