"""JSON by infilling: the skeleton is given, the model writes the values, and what comes out is always JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dllm_rl.errors import DataError, ModelContractError, RecipeError, one_line
from dllm_rl.rollouts.json_schema import VALUE_TOKENS, Piece, compile_schema
from dllm_rl.rollouts.json_slot import Slot, dumps

NULL_TEXT = "<none>"


@dataclass(frozen=True, slots=True)
class Violation:
    """A value that is not what the schema asks for."""

    path: str
    found: str
    """What was written, null text and white space around it stripped."""
    expected: str

    def __str__(self) -> str:
        return f"{self.path}: found {self.found!r}, expected {self.expected}"


@dataclass(frozen=True, slots=True)
class Reading:
    """A completed skeleton."""

    text: str
    """Always JSON: the skeleton, with what was written put into it."""
    value: Any
    """What `text` says. None where a value of the wrong type was written; out of bounds or not among the choices, a
    value stays as it is. `violations` names both."""
    violations: list[Violation]


@dataclass(frozen=True, slots=True)
class Scaffold:
    """A schema's skeleton in tokens, with room for the values; see `scaffold_of`."""

    pieces: tuple[Piece, ...]
    ids: tuple[tuple[int | None, ...], ...]
    """Of each piece; None for each position of a slot."""
    tokenizer: Any
    null_text: str

    @property
    def template(self) -> list[int | None]:
        """The completion as `samplers.generate` wants it in `fixed`."""
        return [token for piece in self.ids for token in piece]

    def read(self, completion: Sequence[int]) -> Reading:
        """What a completion of the template says.

        Bytes that are no text become replacement characters, as everywhere the tokenizer decodes; special tokens are
        no text.
        """
        texts, violations = [], []
        for piece, written in self._with_ids(completion):
            if isinstance(piece, str):
                texts.append(piece)
                continue
            found = strip_null(self._decode(written), self.null_text)
            text, fits = piece.read(found)
            texts.append(text)
            if not fits:
                violations.append(Violation(piece.path, found, piece.expected))
        text = "".join(texts)
        return Reading(text, json.loads(text), violations)

    def _with_ids(self, completion: Sequence[int]) -> Iterator[tuple[Piece, Sequence[int]]]:
        start = 0
        for piece, ids in zip(self.pieces, self.ids, strict=True):
            yield piece, completion[start : start + len(ids)]
            start += len(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def scaffold_of(
    schema: Any, tokenizer: Any, *, value_tokens: int = VALUE_TOKENS, null_text: str = NULL_TEXT
) -> Scaffold:
    """The skeleton of a JSON schema in a tokenizer's ids.

    Each run of known text is tokenised by itself, so that no token belongs both to the skeleton and to a value. What a
    schema may hold: `json_schema.compile_schema`. Choices of an `enum` are not enforced while sampling, which would
    take a grammar: what is written is compared with them afterwards.

    Args:
        value_tokens: positions of a value whose schema does not say (`x-tokens`).
        null_text: what the model is told to fill unused room with; the fewer tokens it takes the better.

    Raises:
        RecipeError: the schema cannot be used, null_text is empty, or a choice (true, false and null are such too) does
            not fit into its room or looks like null text.
        DataError: the tokenizer has no ids for the skeleton or a choice, or takes a part of it for a special token.
        ModelContractError: it does not give the skeleton back.

    Source: Xiong et al. (S3), https://arxiv.org/abs/2507.04504. There a quote inside a value breaks the JSON; here
    values are escaped, arrays and nested objects are skeletons too, and a value of the wrong type is reported.
    """
    if not null_text.strip():
        raise RecipeError(f"null_text is {null_text!r}; expected some text to fill unused room with")
    pieces = compile_schema(schema, value_tokens)
    for slot in pieces:
        if isinstance(slot, Slot):
            _refuse_misfits(slot, tokenizer, null_text)
    ids = tuple(_encode(tokenizer, piece) if isinstance(piece, str) else (None,) * piece.tokens for piece in pieces)
    return Scaffold(pieces, ids, tokenizer, null_text)


def instruction(schema: Any, null_text: str = NULL_TEXT) -> str:
    """What a prompt has to say for the room to be used as it is meant."""
    return (
        f"Answer with JSON that follows this schema:\n{dumps(schema)}\nThe places of the values are given, each with a "
        f"fixed amount of room. Write each value at the start of its place and fill the room that is left with "
        f"{null_text}, repeated."
    )


def strip_null(written: str, null_text: str) -> str:
    """A value as it was meant: without null texts and without white space around.

    A null text that the end of the room cut off is one too: wherever a null text takes several tokens, the last is cut
    more often than not. A value that really ends so needs another null text.
    """
    text = written.rstrip()
    if not text.endswith(null_text):
        beginnings = (null_text[:size] for size in range(len(null_text) - 1, 0, -1))
        text = text.removesuffix(next(filter(text.endswith, beginnings), ""))
    return text.replace(null_text, "").strip()


def _refuse_misfits(slot: Slot, tokenizer: Any, null_text: str) -> None:
    for text in slot.foreseen:
        if strip_null(text, null_text) != text:
            raise RecipeError(
                f"schema at {slot.path}: the choice {text} could not be told from null text {null_text!r} or white "
                "space around it; change one of the two"
            )
        length = len(_encode(tokenizer, text)) if text else 0
        if length > slot.tokens:
            raise RecipeError(
                f"schema at {slot.path}: the choice {text} takes {length} tokens and there is room for {slot.tokens}; "
                "set x-tokens or value_tokens"
            )


def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    try:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise DataError(f"the tokenizer has no ids for {text[:80]!r}: {one_line(error)}") from error
    if set(ids) & set(tokenizer.all_special_ids):
        raise DataError(f"the tokenizer takes a part of {text[:80]!r} for a special token, which is no text; reword it")
    # Twice, because some tokenizers begin every text with a space, which decoding takes off the first one only.
    back = tokenizer.decode(ids * 2, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if back != text * 2:
        raise ModelContractError(
            f"the tokenizer gives {back!r} back for {text * 2!r}; a skeleton is put together from pieces and needs a "
            "tokenizer that keeps every character"
        )
    return tuple(ids)
