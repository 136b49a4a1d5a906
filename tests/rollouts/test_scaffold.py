"""Skeletons in tokens and back: no token is shared with a value, and null text is stripped."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dllm_rl.errors import DataError, ModelContractError, RecipeError
from dllm_rl.rollouts.json_schema import Slot
from dllm_rl.rollouts.scaffold import instruction, scaffold_of, strip_null
from dllm_rl.toys.tokenizer import with_specials
from tests.rollouts.scaffolds import BYTES, PERSON, SKELETON, filled


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "x-tokens": 0}, r"schema at \$: x-tokens is 0; expected a whole number, at least 1"),
        ({"type": "string", "x-tokens": True}, "x-tokens is True"),
        ({"type": "string", "x-tokens": 2.5}, "x-tokens is 2.5"),
        ({"enum": ["no", "maybe"], "x-tokens": 4}, r"the choice maybe takes 5 tokens and there is room for 4"),
        ({"enum": ["a", 'say "'], "x-tokens": 5}, "takes 6 tokens"),  # the quote needs a backslash
        ({"enum": ["a", "b"], "nullable": True, "x-tokens": 2}, 'the choice "a" takes 3 tokens'),
        ({"enum": ["a <none> b"]}, "the choice a <none> b could not be told from null text '<none>'"),
        ({"enum": [">", "<"]}, "the choice < could not be told from null text"),
        ({"enum": ["a", " b"]}, "the choice  b could not be told"),
        ({"type": "boolean", "x-tokens": 4}, "the choice false takes 5 tokens and there is room for 4"),
        ({"type": ["integer", "null"], "x-tokens": 3}, "the choice null takes 4 tokens and there is room for 3"),
    ],
    ids=str,
)
def test_room_that_is_too_small_is_refused(schema, message):
    with pytest.raises(RecipeError, match=message):
        scaffold_of(schema, BYTES)


def test_texts_that_are_special_tokens_are_refused():
    for special in ("<|eot_id|>", "<|mdm_mask|>"):
        for schema in ({"const": f"a{special}"}, {"enum": ["a", special]}):
            with pytest.raises(DataError, match="for a special token, which is no text"):
                scaffold_of(schema, BYTES)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(RecipeError, match="value_tokens is 0"):
        scaffold_of(PERSON, BYTES, value_tokens=0)
    with pytest.raises(RecipeError, match="null_text is ' '"):
        scaffold_of(PERSON, BYTES, null_text=" ")


def test_what_was_meant_comes_out():
    scaffold = scaffold_of(PERSON, BYTES)
    values = ["Ann Ott", "41", "Bern", '"3011"', "a", "b<nob", "small", "true", "-1.5e2", "0", "null"]
    reading = scaffold.read(filled(scaffold, values))
    assert reading.violations == []
    assert reading.value == {
        "name": "Ann Ott",
        "age": 41,
        "address": {"city": "Bern", "zip": "3011"},
        "tags": ["a", "b<nob"],
        "size": "small",
        "kind": {"is": 'a "person"', "n": [1, None]},
        "member": True,
        "place": [-150.0, 0],
        "rank": None,
        "nothing": None,
    }
    assert list(reading.value) == list(PERSON["properties"])
    left = iter(values)
    assert reading.text == "".join(next(left) if letter == "@" else letter for letter in SKELETON)
    assert json.loads(reading.text) == reading.value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("Bob<none><none><", "Bob"),
        ("Bob<none><none", "Bob"),
        ("<none>Bob<none>", "Bob"),
        ("Bob <none> <none> <no", "Bob"),
        ("B<none>ob", "Bob"),
        ("<none><none>", ""),
        ("Bob<n", "Bob"),
        ("41<", "41"),
        ("a<none>b<", "ab"),
        ("<none", ""),
        ("<b>", "<b>"),
        ("<no<", "<no"),
        ("", ""),
    ],
)
def test_null_text_is_stripped(written, value):
    assert strip_null(written, "<none>") == value


def test_the_null_text_can_be_chosen():
    scaffold = scaffold_of({"type": "string"}, BYTES, value_tokens=6, null_text="_")
    assert scaffold.read(filled(scaffold, ["a<n"], null="_")).value == "a<n"
    assert "fill the room that is left with _, repeated" in instruction({"type": "string"}, "_")


def test_special_tokens_are_no_text():
    scaffold = scaffold_of({"type": "string"}, BYTES, value_tokens=4)
    ids = filled(scaffold, ["ab"])
    ids[3:5] = [BYTES.eos_token_id] * 2
    assert scaffold.read([*ids, BYTES.eos_token_id]).value == "ab"


def merging_tokenizer():
    """Merges across what would be the border of skeleton and value: `"` with letters, `:` with a space."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [('"', "a"), ('"a', '"'), ("a", '"'), (":", "Ġ"), ("1", ",")]
    words = [*alphabet, *(left + right for left, right in merges)]
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return with_specials(core, BYTES.chat_template)


def test_no_token_belongs_to_the_skeleton_and_to_a_value():
    schema = {
        "type": "object",
        "properties": {"k": {"type": "string", "x-tokens": 2}, "n": {"type": "integer", "x-tokens": 2}},
    }
    tokenizer = merging_tokenizer()
    whole = tokenizer('{"k": "a", "n": 1, }', add_special_tokens=False)["input_ids"]
    assert any(tokenizer.decode([token]) == '"a"' for token in whole)  # it would merge
    scaffold = scaffold_of(schema, tokenizer)
    for piece, ids in zip(scaffold.pieces, scaffold.ids, strict=True):
        assert ids == (None, None) if isinstance(piece, Slot) else tokenizer.decode(list(ids)) == piece
    a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ('a"', "1"))
    completion = iter([*a, *a, *b, *b])
    ids = [next(completion) if token is None else token for token in scaffold.template]
    reading = scaffold.read(ids)
    assert reading.text == '{"k": "a\\"a\\"", "n": 11}'
    assert reading.value == {"k": 'a"a"', "n": 11}


def test_a_tokenizer_that_does_not_give_the_skeleton_back_is_refused(tiny):
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate('ab{}:",▁ ')}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    lossy = with_specials(core, BYTES.chat_template)
    with pytest.raises(ModelContractError, match="a tokenizer that keeps every character"):
        scaffold_of({"type": "object", "properties": {"a": {"type": "string"}}}, lossy)
    with pytest.raises(DataError, match="the tokenizer has no ids for"):  # characters, ASCII only
        scaffold_of({"type": "object", "properties": {"é": {"type": "string"}}}, tiny.tokenizer)
