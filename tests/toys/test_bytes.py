"""Any text survives the byte tokenizer, and its special tokens are LLaDA's."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from dllm_rl.toys.bytes import byte_tokenizer


def test_any_text_is_ids_and_back(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in ("a b  c\n", "\u00a35 \u2013 na\u00efve \u201cquote\u201d", "\u6570\u5b66 \U0001f642", "\x00\x7f"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(text.encode()) and max(ids) < 256
        assert tokenizer.decode(ids) == text
        assert again(text, add_special_tokens=False)["input_ids"] == ids


def test_specials_are_single_ids_after_the_bytes() -> None:
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 256 + 6
    assert tokenizer.eos_token_id == tokenizer.pad_token_id
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert tokenizer(text, add_special_tokens=False)["input_ids"][0] == tokenizer.bos_token_id
