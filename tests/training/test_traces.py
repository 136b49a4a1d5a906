"""Traces come from columns, lose their answers, and rows that cannot be stripped are refused or counted."""

from __future__ import annotations

import logging

import pytest

from dllm_rl.algorithms.hints import HintSettings
from dllm_rl.errors import DataError
from dllm_rl.toys.tokenizer import character_tokenizer
from dllm_rl.training.data import PromptRow
from dllm_rl.training.traces import with_traces

TOKENIZER = character_tokenizer()


def rows(*columns: dict) -> list[PromptRow]:  # type: ignore[type-arg]
    return [PromptRow([1], f"question {i}", row) for i, row in enumerate(columns)]


def hidden(row: PromptRow) -> str:
    assert row.trace is not None
    text = TOKENIZER.decode(row.trace.ids)
    return "".join(letter if shown else "_" for letter, shown in zip(text, row.trace.shown, strict=True))


def test_the_answer_is_a_column_or_what_a_pattern_finds_last_in_it() -> None:
    (row,) = with_traces(rows({"trace": "3*24=72, so 72.", "answer": " 72 "}), HintSettings(), TOKENIZER, "data")
    assert hidden(row) == "3*24=__, so __."
    assert (row.ids, row.prompt, row.columns["answer"]) == ([1], "question 0", " 72 ")
    settings = HintSettings(reference_column="answer", answer_pattern=r"####\s*(\S+)")
    (row,) = with_traces(rows({"answer": "#### 1 no: 48/2=24\n#### 24"}), settings, TOKENIZER, "data")
    assert hidden(row) == "#### 1 no: 48/2=__\n#### __"


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"answer": "1"}, {}, r"prompt 'question 0': column 'trace', which hints need, is missing; there are answer"),
        ({"answer": "1", "trace": " "}, {}, r"column 'trace', which hints need, is empty"),
        ({"answer": None, "trace": "1"}, {}, r"column 'answer', which hints need, is empty"),
        ({"trace": "a", "answer": "b"}, {"answer_pattern": "#(.)"}, r"answer_pattern '#\(.\)' finds no answer in col"),
        ({"trace": "a", "answer": "# "}, {"answer_pattern": "#(.)"}, "finds no answer in column 'answer'"),
        ({"trace": "half of it", "answer": "1/2"}, {}, r"the answer '1/2' is not in column 'trace', or only in other"),
        ({"trace": "half", "answer": "1/2"}, {"unstripped": "drop"}, "none of 1 traces holds its answer"),
    ],
)
def test_rows_that_cannot_be_stripped_are_refused(row, settings, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=f"^data(, prompt 'question 0')?: (?!data).*{message}|^data, {message}"):
        with_traces(rows(row), HintSettings(**settings), TOKENIZER, "data")


@pytest.mark.parametrize(("unstripped", "left", "verb"), [("drop", 1, "left out"), ("keep", 2, "used as they are")])
def test_traces_without_the_answer_are_left_out_or_kept_and_counted(
    unstripped: str, left: int, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    both = rows({"trace": "a=72", "answer": "72"}, {"trace": "seventy-two", "answer": "72"})
    with caplog.at_level(logging.WARNING):
        kept = with_traces(both, HintSettings(unstripped=unstripped), TOKENIZER, "data")
    assert [row.prompt for row in kept] == ["question 0", "question 1"][:left]
    assert f"{verb} 1 of 2 rows whose trace does not hold the answer" in caplog.text
    assert all(row.trace is not None for row in kept)
    caplog.clear()
    with_traces(both[:1], HintSettings(), TOKENIZER, "data")
    assert not caplog.text
