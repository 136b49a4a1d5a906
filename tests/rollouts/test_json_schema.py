"""Schemas as skeletons: what they are cut into, and which are refused."""

from __future__ import annotations

import math

import pytest

from dllm_rl.errors import RecipeError
from dllm_rl.rollouts.json_schema import Slot, compile_schema, read_schema
from dllm_rl.rollouts.scaffold import scaffold_of
from tests.rollouts.scaffolds import BYTES, PERSON, SKELETON, filled, skeleton

REFERRED = {"x": {"type": "array", "prefixItems": [{"$ref": "#/$defs/y"}] * 2}, "y": {"type": "string"}}
NUMBER = {"type": "number"}


def test_a_schema_is_a_skeleton_with_slots():
    assert skeleton(PERSON) == SKELETON
    slots = [piece for piece in compile_schema(PERSON, value_tokens=5) if isinstance(piece, Slot)]
    assert [(slot.path, slot.kind, slot.tokens) for slot in slots] == [
        ("$.name", "string", 5),
        ("$.age", "integer", 4),
        ("$.address.city", "string", 5),
        ("$.address.zip", "string", 5),
        ("$.tags[0]", "string", 6),
        ("$.tags[1]", "string", 6),
        ("$.size", "enum", 5),
        ("$.member", "boolean", 5),
        ("$.place[0]", "number", 5),
        ("$.place[1]", "number", 5),
        ("$.rank", "enum", 5),
    ]
    assert next(slot.tokens for slot in compile_schema(PERSON) if isinstance(slot, Slot)) == 16


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string"}, '"@"'),
        ({"type": "string", "nullable": True}, "@"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}, "@"),
        ({"enum": ["a", "b"], "type": "string", "nullable": True}, "@"),
        ({"enum": ["a", None]}, "@"),
        ({"type": ["integer", "null"]}, "@"),
        ({"type": "array", "items": {"type": "null"}, "minItems": 0, "maxItems": 0}, "[]"),
        ({"type": "array", "prefixItems": []}, "[]"),
        ({"type": "object", "properties": {}}, "{}"),
        ({"type": "object", "properties": {"b": {"const": 1}, "a": {"const": "é\n"}}}, '{"b": 1, "a": "é\\n"}'),
        ({"type": "object", "properties": {'q"\\': {"type": "boolean"}}}, '{"q\\"\\\\": @}'),
        ({"$ref": "#/$defs/x", "$defs": REFERRED}, '["@", "@"]'),
        ({"$ref": "#/definitions/y", "definitions": REFERRED, "title": "other"}, '"@"'),
        ({"$ref": "#/$defs/a~1b~0", "$defs": {"a/b~": NUMBER}}, "@"),
        ({"type": "string", "enum": ["a", None], "nullable": True}, "@"),
        ({"type": ["string", "array"], "const": [1]}, "[1]"),
        ({"anyOf": [{"$ref": "#/$defs/y"}, {"type": "null"}], "$defs": REFERRED, "nullable": True}, "@"),
    ],
    ids=str,
)  # fmt: skip
def test_skeletons(schema, text):
    assert skeleton(schema) == text


def test_a_pydantic_model_is_a_schema():
    from typing import Literal

    from pydantic import BaseModel

    class Part(BaseModel):
        name: str
        count: int | None = None

    class Whole(BaseModel):
        first: Part
        pair: tuple[Part, float]
        colour: Literal["red", "blue"] | None = None

    text = '{"first": {"name": "@", "count": @}, "pair": [{"name": "@", "count": @}, @], "colour": @}'
    assert skeleton(Whole.model_json_schema()) == text
    scaffold = scaffold_of(Whole.model_json_schema(), BYTES)
    reading = scaffold.read(filled(scaffold, ["a", "3", "b", "null", "0.5", '"red"']))
    assert reading.violations == []
    assert Whole.model_validate(reading.value).pair[1] == 0.5


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "pattern": "a+"}, r"schema at \$: keyword 'pattern' is not supported for 'string'"),
        ({"type": "object", "properties": {"a": {**NUMBER, "multipleOf": 2}}}, r"at \$\.a: keyword 'multipleOf'"),
        ({"type": "array", "prefixItems": [{"oneOf": []}]}, r"at \$\[0\]: keyword 'oneOf' is not supported"),
        ({"type": "string", "oneOf": []}, "keyword 'oneOf' is not supported"),
        ({"type": "string", "maximum": 3}, "keyword 'maximum' is not supported for 'string'"),
        ({"type": "object", "properties": {}, "patternProperties": {}}, "keyword 'patternProperties'"),
        ({"type": "object", "properties": {}, "x-tokens": 3}, "keyword 'x-tokens' is not supported for 'object'"),
        ({"anyOf": [{"type": "string"}, {"type": "number"}]}, "keyword 'anyOf' is supported for one schema and"),
        ({"type": "enum"}, "type is 'enum'; expected one of object, array, string"),
        ({"type": ["string", "number"]}, "type is .* expected one of"),
        ({"type": ["object", "null"], "properties": {}}, "an object that may be null"),
        ({"type": "array", "items": {"type": "string"}}, "an array with minItems None and maxItems None"),
        ({"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}, "minItems 1 and maxItems 2"),
        ({"type": "array", "minItems": 2, "maxItems": 2}, "expected 'items' and equal numbers"),
        ({"type": "array", "items": {"type": "string"}, "minItems": -1, "maxItems": -1}, "minItems is -1"),
        ({"type": "array", "prefixItems": [{"const": 1}], "maxItems": 2}, "1 prefixItems and more or fewer"),
        ({"type": "array", "prefixItems": [], "items": {"const": 1}}, "0 prefixItems and more or fewer"),
        ({"type": "object"}, "an object without 'properties'"),
        ({"type": "object", "properties": {"a": {"const": 1}}, "required": ["b"]}, "'b' is required and is not among"),
        ({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}, "'additionalProperties'"),
        ({"type": "object", "properties": {"a": True}}, r"schema at \$\.a: found True; expected a schema"),
        ({"enum": []}, r"enum is \[\]"),
        ({"enum": [[1]]}, r"the choice \[1\] is no"),
        ({"enum": ["a", 1], "type": "string"}, "the choice 1 is no string"),
        ({"type": "string", "maxLength": -1}, "maxLength is -1; expected a length"),
        ({"type": "number", "minimum": "0"}, "minimum is '0'; expected a number"),
        ({"type": "string", "nullable": "yes"}, "nullable is 'yes'"),
        ({"const": 1, "nullable": True}, "keyword 'nullable' is not supported for 'const'"),
        ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, r"at \$\.next: '#/\$defs/node' contains itself"),
        ({"$ref": "other.json"}, "expected one within the schema"),
        ({"$ref": "#/$defs/a"}, "the schema has nothing there"),
        ("string", r"schema at \$: found 'string'"),
        ({"anyOf": 3}, "keyword 'anyOf' is supported for one schema"),
        ({"type": []}, r"type is \[\]; expected"),
        ({"type": ["string", ["null"]]}, "type is .*; expected"),
        ({"enum": ["a"], "type": {"x": 1}}, "type is .*; expected"),
        ({"type": "array", "prefixItems": 3}, "prefixItems is 3; expected a list of schemas"),
        ({"type": "array", "prefixItems": [], "minItems": [1]}, r"minItems is \[1\]; expected a length"),
        ({"type": "object", "properties": {"a": {"const": 1}}, "required": 5}, "required is 5; expected a list of"),
        ({"type": "object", "properties": {"a": {"const": 1}}, "required": "a"}, "required is 'a'; expected a list of"),
        ({"type": "object", "properties": {"a": {"const": 1}}, "required": [["a"]]}, r"\['a'\] is required"),
        ({"type": "object", "properties": {1: {"const": 1}}}, "list them by name"),
        ({"const": math.nan}, "the schema is not JSON: "),
        ({"const": {1, 2}}, "the schema is not JSON: "),
        ({"type": "number", "minimum": math.inf}, "the schema is not JSON: "),
        ({"const": 1, "type": "string"}, "the choice 1 is no string"),
        ({"const": True, "type": ["integer", "null"]}, "the choice True is no integer or null"),
        ({"enum": ["a", None], "type": "string"}, "the choice None is no string"),
        ({"enum": [{"a": 1}]}, "the choice {'a': 1} is no string, number, boolean or null"),
    ],
    ids=str,
)  # fmt: skip
def test_schemas_that_cannot_be_a_skeleton_are_refused_with_their_place(schema, message):
    with pytest.raises(RecipeError, match=message):
        compile_schema(schema)


SHORT = {"type": "string", "maxLength": 3}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "#/$defs/a", "maxLength": 9}, "keyword 'maxLength' is 9 beside a \\$ref to a schema where it is 3"),
        ({"$ref": "#/$defs/a", "type": "integer"}, "keyword 'type' is 'integer' beside"),
        ({"anyOf": [SHORT, {"type": "null"}], "maxLength": 9}, "keyword 'maxLength' is not supported beside 'anyOf'"),
        ({"anyOf": [SHORT, {"type": "null"}], "type": "string"}, "keyword 'type' is not supported beside 'anyOf'"),
    ],
    ids=str,
)  # fmt: skip
def test_no_keyword_overrules_another(schema, message):
    with pytest.raises(RecipeError, match=message):
        compile_schema({**schema, "$defs": {"a": SHORT}})


def test_what_stands_beside_a_reference_holds_too():
    beside = {
        "$ref": "#/$defs/a",
        "maxLength": 3,
        "minLength": 1,
        "x-tokens": 7,
        "$defs": {"a": SHORT | {"x-tokens": 2}},
    }
    _, slot, _ = compile_schema(beside)
    assert (slot.limits, slot.tokens) == ({"maxLength": 3, "minLength": 1}, 7)


def test_a_schema_is_read_from_a_file_of_strict_json(tmp_path):
    file = tmp_path / "schema.json"
    for text, message in (
        ('{"type": "string", "type": "integer"}', "the name 'type' stands twice"),
        ('{"minimum": NaN}', "found NaN, which is no JSON number"),
        ("{", "not strict JSON"),
        ('"\xff"', "not strict JSON"),
    ):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(RecipeError, match=message):
            read_schema(file)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_schema(tmp_path)
    file.write_text('{"const": "é"}', encoding="utf-8")
    assert read_schema(file) == {"const": "é"}
