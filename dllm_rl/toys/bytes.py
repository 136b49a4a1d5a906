"""A tokenizer of bytes, built in code: any text is a list of ids and back, so tiny models can read real data."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dllm_rl.toys.tokenizer import BOS, EOS, EOT, HEADER_END, HEADER_START, LLADA_TEMPLATE, MASK, SPECIALS


def byte_tokenizer(chat_template: str = LLADA_TEMPLATE) -> PreTrainedTokenizerFast:
    """One id per byte of UTF-8, then LLaDA's special tokens; EOS is also the padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIALS))
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        mask_token=MASK,
        additional_special_tokens=[EOT, HEADER_START, HEADER_END],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer
