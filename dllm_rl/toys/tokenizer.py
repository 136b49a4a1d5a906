"""A tokenizer of single characters, built in code: any ASCII text is a list of ids and back."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PRINTABLE = "\n" + "".join(chr(code) for code in range(32, 127))
MASK, EOS, EOT, BOS = "<|mdm_mask|>", "<|endoftext|>", "<|eot_id|>", "<|startoftext|>"
HEADER_START, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
SPECIALS = (BOS, EOS, EOT, HEADER_START, HEADER_END, MASK)

PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""Messages one after the other, nothing added."""

LLADA_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}" + BOS + "{% endif %}"
    f"{HEADER_START}{{{{ message['role'] }}}}{HEADER_END}\n\n{{{{ message['content'] | trim }}}}{EOT}"
    f"{{% endfor %}}{HEADER_START}assistant{HEADER_END}{{{{ '\\n\\n' }}}}"  # a bare line end would be trimmed
)
"""LLaDA-Instruct's layout, which always ends with the assistant's header."""


def character_tokenizer(alphabet: str = PRINTABLE, chat_template: str = PLAIN_TEMPLATE) -> PreTrainedTokenizerFast:
    """One id per character of `alphabet`, in its order, then LLaDA's special tokens; EOS is also the padding.

    Encoding a character outside the alphabet raises: there is no unknown token to hide it.
    """
    if len(set(alphabet)) != len(alphabet):
        raise ValueError("the alphabet has a character twice; expected each once")
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    core = Tokenizer(models.WordLevel(vocabulary))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return with_specials(core, chat_template)


def with_specials(core: Tokenizer, chat_template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that also has LLaDA's special tokens, after its own; EOS is also the padding."""
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
