"""Schemas and completions that the tests of JSON share."""

from __future__ import annotations

from dllm_rl.rollouts.json_schema import Slot, compile_schema
from dllm_rl.toys.bytes import byte_tokenizer

BYTES = byte_tokenizer()
PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "in full", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "x-tokens": 4},
        "address": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "zip": {"type": ["string", "null"]}},
            "required": ["city"],
        },
        "tags": {"type": "array", "items": {"type": "string", "x-tokens": 6}, "minItems": 2, "maxItems": 2},
        "size": {"enum": ["small", "large"]},
        "kind": {"const": {"is": 'a "person"', "n": [1, None]}},
        "member": {"type": "boolean"},
        "place": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}], "items": False},
        "rank": {"enum": [1, "first", None]},
        "nothing": {"type": "null"},
    },
    "required": ["name"],
    "additionalProperties": False,
}
SKELETON = (
    '{"name": "@", "age": @, "address": {"city": "@", "zip": @}, "tags": ["@", "@"], "size": "@", '
    '"kind": {"is": "a \\"person\\"", "n": [1, null]}, "member": @, "place": [@, @], "rank": @, "nothing": null}'
)


def skeleton(schema, **more) -> str:
    return "".join("@" if isinstance(piece, Slot) else piece for piece in compile_schema(schema, **more))


def filled(scaffold, values, null="<none>"):
    """The completion of a scaffold with `values` in its slots, in order, and null text after them."""
    values, ids = iter(values), []
    for piece, room in zip(scaffold.pieces, scaffold.ids, strict=True):
        if isinstance(piece, Slot):
            text = next(values)
            written = BYTES(text + null * len(room), add_special_tokens=False)["input_ids"]
            assert len(BYTES(text, add_special_tokens=False)["input_ids"]) <= len(room)
            ids += written[: len(room)]
        else:
            ids += room
    assert next(values, None) is None
    return ids
