"""The character tokenizer: text and ids in exact correspondence."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from dllm_rl.toys.tokenizer import LLADA_TEMPLATE, PRINTABLE, SPECIALS, character_tokenizer


def test_every_character_is_one_id_in_order() -> None:
    tokenizer = character_tokenizer()
    assert tokenizer.encode(PRINTABLE) == list(range(96))
    assert len(tokenizer) == 96 + len(SPECIALS)


@pytest.mark.parametrize(
    "text", ["", " ", "a  b \n\n c ", "it 's , ok ?", "<think>1 + 1</think>", "<|eot_id|>x<|endoftext|>"]
)
def test_text_survives_exactly(text: str) -> None:
    tokenizer = character_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_single_ids() -> None:
    tokenizer = character_tokenizer("ab")
    assert [tokenizer.encode(special) for special in SPECIALS] == [[2], [3], [4], [5], [6], [7]]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 3
    assert tokenizer.mask_token_id == 7 and tokenizer.bos_token_id == 2
    assert tokenizer.decode([0, 3, 3], skip_special_tokens=True) == "a"


def test_a_character_outside_the_alphabet_is_an_error() -> None:
    with pytest.raises(Exception, match="UNK"):
        character_tokenizer("ab").encode("abc")


def test_an_alphabet_has_each_character_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        character_tokenizer("aba")


MESSAGES = [{"role": "user", "content": "2+2= "}, {"role": "assistant", "content": "4"}]


def test_plain_template_is_concatenation() -> None:
    tokenizer = character_tokenizer()
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == "2+2= 4"
    ids = tokenizer.apply_chat_template(MESSAGES[:1], add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.encode("2+2= ")


def test_llada_template_is_the_published_layout() -> None:
    """Trimmed text, and the assistant's header at the end whether asked for or not."""
    text = character_tokenizer(chat_template=LLADA_TEMPLATE).apply_chat_template(MESSAGES, tokenize=False)
    start, end = "<|start_header_id|>", "<|end_header_id|>"
    assert text == (
        f"<|startoftext|>{start}user{end}\n\n2+2=<|eot_id|>{start}assistant{end}\n\n4<|eot_id|>{start}assistant{end}\n\n"
    )


def test_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(chat_template=LLADA_TEMPLATE)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "Hi , there\n<|eot_id|><|mdm_mask|>"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(again.encode(text)) == text
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.pad_token_id, again.mask_token_id) == (tokenizer.pad_token_id, tokenizer.mask_token_id)
    assert again.chat_template == tokenizer.chat_template
