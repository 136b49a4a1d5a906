"""From rows of a data set to token ids: prompts to roll out, pairs to compare, texts to learn."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dllm_rl.errors import DataError
from dllm_rl.rollouts.hints import Trace
from dllm_rl.rollouts.rows import Row
from dllm_rl.rollouts.text import encode_prompt, prompt_text

log = logging.getLogger(__name__)

Messages = list[dict[str, str]]
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|role_end|>")


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt to answer, and the columns that reward functions may want."""

    ids: list[int]
    prompt: str | Messages
    columns: Row
    trace: Trace | None = None
    """What hints for this prompt come from."""
    place: int = 0
    """Which of the data's rows this is."""

    def as_completion(self, text: str) -> str | Messages:
        """A completion in the prompt's own format, as TRL's reward convention has it."""
        return text if isinstance(self.prompt, str) else [{"role": "assistant", "content": text}]

    def as_text(self) -> str:
        return prompt_text(self.prompt)


def columns_of(rows: Sequence[PromptRow]) -> dict[str, list[Any]]:
    """Columns as lists, one entry per row, as reward functions take them."""
    return {name: [row.columns[name] for row in rows] for name in rows[0].columns}


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with the completion to learn, or with the chosen and the rejected one, as ids."""

    prompt: list[int]
    completions: tuple[list[int], ...]


def column(row: Row, name: str, index: int, source: str) -> Any:
    """A column that must be there.

    Raises:
        DataError: it is not, or it is empty.
    """
    if name not in row or row[name] is None:
        raise DataError(f"{source}, row {index}: no column {name!r}; it has {', '.join(sorted(row)) or 'none'}")
    if isinstance(row[name], str) and not row[name].strip():
        raise DataError(f"{source}, row {index}: column {name!r} is empty")
    return row[name]


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How a row becomes a prompt, and a prompt becomes ids.

    With a template or a system message the prompt is a chat turn if the tokenizer has a chat template, plain text if
    not. A column `prompt` is taken as it is: text stays text, messages are a chat.
    """

    tokenizer: Any
    template: str | None = None
    system: str | None = None
    source: str = "data"

    def prompt(self, row: Row, index: int) -> str | Messages:
        if self.template is None:
            text = column(row, "prompt", index, self.source)
        else:
            try:
                text = self.template.format_map(row)
            except KeyError as error:
                raise DataError(
                    f"{self.source}, row {index}: data.prompt names {error}, which is no column; "
                    f"the row has {', '.join(sorted(row))}"
                ) from error
            except (ValueError, IndexError) as error:
                raise DataError(
                    f"data.prompt: {self.template!r} is no template ({error}); name columns in braces, such as "
                    "{question}"
                ) from error
            if not text.strip():
                raise DataError(f"{self.source}, row {index}: the prompt is empty")
        plain = isinstance(text, str) and (
            (self.template is None and self.system is None) or self.tokenizer.chat_template is None
        )
        if plain:
            return f"{self.system}\n\n{text}" if self.system else text
        user: Messages = [{"role": "user", "content": text}] if isinstance(text, str) else list(text)
        return [{"role": "system", "content": self.system}, *user] if self.system else user

    def ids(self, prompt: str | Messages) -> list[int]:
        try:
            return encode_prompt(self.tokenizer, prompt)
        except DataError as error:
            raise DataError(f"{self.source}: {error}") from error

    def completion_ids(self, completion: str | Messages, *, chat: bool, eos_id: int) -> list[int]:
        """The text, its end-of-turn token if it answers a chat, and exactly one EOS."""
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        return [*self.ids(text), *(_end_of_turn(self.tokenizer) if chat else ()), eos_id]


@lru_cache(maxsize=8)
def _end_of_turn(tokenizer: Any) -> list[int]:
    """The id that ends a chat turn, if there is one; looked up once, since vocabularies are large."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[name] for name in _END_OF_TURN if name in vocabulary][:1]


@dataclass(frozen=True, slots=True)
class LengthRule:
    """How long a row may be, and what happens to longer ones."""

    max_prompt: int | None
    max_total: int | None
    completion: int
    """Tokens that a rollout adds; 0 for data that bring their own completions."""
    drop: bool
    max_completion: int | None = None
    """Tokens that a completion of the data may have, with those that end it."""

    def keep(self, prompt: Sequence[int], longest_completion: int, index: int, source: str) -> bool:
        """Whether a row fits.

        Raises:
            DataError: it does not and rows are not to be dropped, or its prompt has no tokens at all.
        """
        if not prompt:
            raise DataError(f"{source}, row {index}: the prompt has no tokens; a prompt must not be empty")
        total = len(prompt) + max(self.completion, longest_completion)
        reason = None
        if self.max_prompt is not None and len(prompt) > self.max_prompt:
            reason = f"its prompt has {len(prompt)} tokens, data.max_prompt_length is {self.max_prompt}"
        elif self.max_completion is not None and longest_completion > self.max_completion:
            reason = (
                f"its completion has {longest_completion} tokens, data.max_completion_length is {self.max_completion}"
            )
        elif self.max_total is not None and total > self.max_total:
            reason = f"prompt and completion need {total} positions, the model has {self.max_total}"
        if reason and not self.drop:
            raise DataError(
                f"{source}, row {index}: {reason}; shorten it, raise the limit or set data.overlong: drop to leave "
                "such rows out"
            )
        return reason is None


def fitting(rows: Iterable[tuple[Any, bool]], source: str) -> list[Any]:
    """The rows that fit; how many did not is logged.

    Raises:
        DataError: none fits.
    """
    kept, dropped = [], 0
    for row, fits in rows:
        if fits:
            kept.append(row)
        else:
            dropped += 1
    if not kept:
        raise DataError(f"{source}: all {dropped} rows are too long; raise the limits in data or shorten them")
    if dropped:
        log.warning("%s: left out %d of %d rows that are too long", source, dropped, dropped + len(kept))
    return kept


def prompt_rows(rows: Sequence[Row], form: PromptFormat, rule: LengthRule) -> list[PromptRow]:
    """Prompts with the remaining columns beside them.

    Raises:
        DataError: a prompt cannot be used, or rows do not all have the same columns.
    """

    def convert() -> Iterable[tuple[PromptRow, bool]]:
        for index, row in enumerate(rows):
            prompt = form.prompt(row, index)
            if row.keys() != rows[0].keys():
                name = sorted(row.keys() ^ rows[0].keys())[0]
                raise DataError(
                    f"{form.source}, row {index}: column {name!r} is in this row or in row 0, not in both; reward "
                    "functions need the same columns in every row"
                )
            ids = form.ids(prompt)
            columns = {name: value for name, value in row.items() if name != "prompt"}
            yield PromptRow(ids, prompt, columns, place=index), rule.keep(ids, 0, index, form.source)

    return fitting(convert(), form.source)


def pair_rows(rows: Sequence[Row], form: PromptFormat, rule: LengthRule, eos_id: int) -> list[Example]:
    """Preference pairs from the columns prompt (or a template), chosen and rejected."""

    def convert() -> Iterable[tuple[Example, bool]]:
        for index, row in enumerate(rows):
            prompt = form.prompt(row, index)
            chat = not isinstance(prompt, str)
            chosen, rejected = (
                form.completion_ids(column(row, name, index, form.source), chat=chat, eos_id=eos_id)
                for name in ("chosen", "rejected")
            )
            ids = form.ids(prompt)
            fits = rule.keep(ids, max(len(chosen), len(rejected)), index, form.source)
            yield Example(ids, (chosen, rejected)), fits

    return fitting(convert(), form.source)


def text_rows(rows: Sequence[Row], form: PromptFormat, rule: LengthRule, eos_id: int) -> list[Example]:
    """Supervised rows from prompt and completion, or from `messages` that end with the assistant's."""

    def convert() -> Iterable[tuple[Example, bool]]:
        for index, row in enumerate(rows):
            if "messages" in row:
                *turns, last = column(row, "messages", index, form.source)
                prompt, completion = turns, last["content"]
            else:
                prompt = form.prompt(row, index)
                completion = column(row, "completion", index, form.source)
            chat = not isinstance(prompt, str)
            ids, answer = form.ids(prompt), form.completion_ids(completion, chat=chat, eos_id=eos_id)
            yield Example(ids, (answer,)), rule.keep(ids, len(answer), index, form.source)

    return fitting(convert(), form.source)
