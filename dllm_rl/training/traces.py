"""Reference traces of prompts, with their answers taken out."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dllm_rl.algorithms.hints import HintSettings
from dllm_rl.errors import DataError
from dllm_rl.rollouts.hints import strip_answer
from dllm_rl.training.data import PromptRow

log = logging.getLogger(__name__)


def with_traces(rows: Sequence[PromptRow], settings: HintSettings, tokenizer: Any, source: str) -> list[PromptRow]:
    """The rows with the traces that their hints come from.

    Rows whose trace does not hold the answer as it is written are left out or used as they are, as the settings say;
    their number is logged.

    Raises:
        DataError: a row has no trace or no answer, the answer cannot be taken out, the settings refuse a row, or none
            is left.
    """
    kept, unstripped = [], 0
    for row in rows:
        place = f"{source}, prompt {row.as_text()[-60:]!r}"
        answer, text = _answer(row, settings, place), _text(row, settings.reference_column, place)
        try:
            trace = strip_answer(text, answer, tokenizer)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        if not trace.held_answer:
            unstripped += 1
            if settings.unstripped == "error":
                raise DataError(
                    f"{place}: the answer {answer!r} is not in column {settings.reference_column!r}, or only in other "
                    "words, which hints would show; set algorithm.hints.answer_pattern if it is not the whole of "
                    f"column {settings.answer_column!r}, or algorithm.hints.unstripped: drop (leaves such rows out) or "
                    "keep (if the traces come without their answers)"
                )
            if settings.unstripped == "drop":
                continue
        kept.append(replace(row, trace=trace))
    if not kept:
        raise DataError(f"{source}: none of {len(rows)} traces holds its answer; see algorithm.hints.answer_pattern")
    if unstripped:
        verb = "left out" if settings.unstripped == "drop" else "used as they are"
        log.warning("%s: %s %d of %d rows whose trace does not hold the answer", source, verb, unstripped, len(rows))
    return kept


def _answer(row: PromptRow, settings: HintSettings, place: str) -> str:
    text = _text(row, settings.answer_column, place)
    if settings.answer_pattern is None:
        return text.strip()
    found = list(re.finditer(settings.answer_pattern, text))
    answer = (found[-1].group(1) or "").strip() if found else ""
    if not answer:
        raise DataError(
            f"{place}: algorithm.hints.answer_pattern {settings.answer_pattern!r} finds no answer in column "
            f"{settings.answer_column!r}: {text[-60:]!r}"
        )
    return answer


def _text(row: PromptRow, name: str, place: str) -> str:
    value = row.columns.get(name)
    if value is None or not str(value).strip():
        found = "is empty" if name in row.columns else f"is missing; there are {', '.join(sorted(row.columns))}"
        raise DataError(f"{place}: column {name!r}, which hints need, {found}")
    return str(value)
