"""A tokenizer of bytes, built in code: any text is a list of ids and back, so tiny models can read real data."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dllm_rl.toys.tokenizer import LLADA_TEMPLATE, with_specials


def byte_tokenizer(chat_template: str = LLADA_TEMPLATE) -> PreTrainedTokenizerFast:
    """One id per byte of UTF-8, then LLaDA's special tokens; EOS is also the padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return with_specials(core, chat_template)
