"""Rows become ids as documented, and rows that cannot are refused with their place and the remedy."""

from __future__ import annotations

import logging

import pytest

from dllm_rl.errors import DataError
from dllm_rl.toys.tokenizer import character_tokenizer
from dllm_rl.training.data import LengthRule, PromptFormat, pair_rows, prompt_rows, text_rows

ANY = LengthRule(max_prompt=None, max_total=None, completion=0, drop=False)
EOS = 97


@pytest.fixture
def form() -> PromptFormat:
    return PromptFormat(character_tokenizer())


def _decode(form: PromptFormat, ids: list[int]) -> str:
    return str(form.tokenizer.decode(ids))


def test_a_text_column_is_taken_as_it_is(form: PromptFormat) -> None:
    (row,) = prompt_rows([{"prompt": "1+1=", "answer": "2"}], form, ANY)
    assert _decode(form, row.ids) == "1+1=" and row.prompt == "1+1=" and row.columns == {"answer": "2"}
    assert row.as_completion("2") == "2"


def test_a_template_makes_a_chat_turn_if_the_tokenizer_has_one_and_text_if_not() -> None:
    tokenizer = character_tokenizer()
    form = PromptFormat(tokenizer, template="Q: {question}", system="Be brief.")
    (row,) = prompt_rows([{"question": "why?"}], form, ANY)
    assert row.prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q: why?"}]
    assert row.as_completion("so") == [{"role": "assistant", "content": "so"}]
    tokenizer.chat_template = None
    (row,) = prompt_rows([{"question": "why?"}], form, ANY)
    assert row.prompt == "Be brief.\n\nQ: why?"


def test_completions_end_with_one_end_of_turn_in_a_chat_and_one_end_of_text(form: PromptFormat) -> None:
    eos = form.tokenizer.eos_token_id
    (text,) = text_rows([{"prompt": "1+1=", "completion": "2"}], form, ANY, eos)
    assert _decode(form, text.completions[0]) == "2<|endoftext|>"
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    (text,) = text_rows([{"messages": chat}], form, ANY, eos)
    assert _decode(form, text.completions[0]) == "yo<|eot_id|><|endoftext|>"


def test_pairs_share_their_prompt(form: PromptFormat) -> None:
    (pair,) = pair_rows([{"prompt": "a", "chosen": "b", "rejected": "cd"}], form, ANY, EOS)
    assert [_decode(form, ids) for ids in (pair.prompt, pair.completions[0][:-1], pair.completions[1][:-1])] == [
        "a",
        "b",
        "cd",
    ]
    assert [ids[-1] for ids in pair.completions] == [EOS, EOS]


@pytest.mark.parametrize(
    "rows,message",
    [
        ([{"prompt": "a", "x": 1}, {"x": 1}], r"row 1: no column 'prompt'; it has x"),
        ([{"prompt": ""}], r"row 0: column 'prompt' is empty"),
        ([{"prompt": "  \n"}], r"row 0: column 'prompt' is empty"),
        ([{"prompt": None}], r"row 0: no column 'prompt'"),
    ],
)
def test_bad_prompts_name_their_row(form: PromptFormat, rows: list[dict], message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(DataError, match=message):
        prompt_rows(rows, form, ANY)


def test_a_template_over_a_missing_column_names_the_columns() -> None:
    form = PromptFormat(character_tokenizer(), template="{question}")
    with pytest.raises(DataError, match=r"names 'question', which is no column; the row has answer"):
        prompt_rows([{"answer": "1"}], form, ANY)


def test_a_row_without_the_rejected_text_is_refused(form: PromptFormat) -> None:
    with pytest.raises(DataError, match=r"row 0: no column 'rejected'; it has chosen, prompt"):
        pair_rows([{"prompt": "a", "chosen": "b"}], form, ANY, EOS)


def test_long_rows_are_an_error_or_left_out_and_counted(form: PromptFormat, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "abc"}, {"prompt": "abcdef"}]
    by_prompt = LengthRule(max_prompt=5, max_total=None, completion=0, drop=False)
    with pytest.raises(DataError, match=r"row 1: its prompt has 6 tokens, data.max_prompt_length is 5"):
        prompt_rows(rows, form, by_prompt)
    by_model = LengthRule(max_prompt=None, max_total=10, completion=5, drop=False)
    with pytest.raises(DataError, match=r"row 1: prompt and completion need 11 positions, the model has 10"):
        prompt_rows(rows, form, by_model)
    with caplog.at_level(logging.WARNING):
        kept = prompt_rows(rows, form, LengthRule(max_prompt=5, max_total=None, completion=0, drop=True))
    assert len(kept) == 1 and "left out 1 of 2 rows" in caplog.text
    with pytest.raises(DataError, match="all 2 rows are too long"):
        prompt_rows(rows, form, LengthRule(max_prompt=1, max_total=None, completion=0, drop=True))


def test_long_completions_are_an_error_or_left_out_and_counted(
    form: PromptFormat, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit counts what ends a completion, so that none is longer than a canvas of that size."""
    rows = [{"prompt": "a", "completion": "12345"}, {"prompt": "a", "completion": "123456"}]
    rule = LengthRule(max_prompt=None, max_total=None, completion=0, drop=False, max_completion=6)
    with pytest.raises(DataError, match=r"row 1: its completion has 7 tokens, data.max_completion_length is 6"):
        text_rows(rows, form, rule, EOS)
    pairs = [{"prompt": "a", "chosen": "1", "rejected": "123456"}]
    with pytest.raises(DataError, match=r"row 0: its completion has 7 tokens"):
        pair_rows(pairs, form, rule, EOS)
    with caplog.at_level(logging.WARNING):
        kept = text_rows(rows, form, LengthRule(None, None, 0, drop=True, max_completion=6), EOS)
    assert [len(row.completions[0]) for row in kept] == [6] and "left out 1 of 2 rows" in caplog.text


def test_text_that_the_tokenizer_lacks_is_refused(form: PromptFormat) -> None:
    with pytest.raises(DataError, match="data: the tokenizer has no ids for the prompt '£5'"):
        prompt_rows([{"prompt": "£5"}], form, ANY)


def test_rows_with_other_columns_and_broken_templates_are_refused(form: PromptFormat) -> None:
    with pytest.raises(DataError, match="row 1: column 'answer' is in this row or in row 0, not in both"):
        prompt_rows([{"prompt": "a", "answer": "1"}, {"prompt": "b"}], form, ANY)
    for template in ("{}", "{question", "{question!z}"):
        with pytest.raises(DataError, match="is no template"):
            prompt_rows([{"question": "a"}], PromptFormat(character_tokenizer(), template=template), ANY)
