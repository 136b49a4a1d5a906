"""Between text and ids: prompts in, completions out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dllm_rl.errors import DataError, ModelContractError, one_line

if TYPE_CHECKING:
    from dllm_rl.models.denoiser import DiffusionModel

Prompt = str | Sequence[Mapping[str, str]]


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Ids of a prompt: messages by the tokenizer's chat template if it has one, else their contents as plain text.

    An assistant's message at the end is the beginning of the answer, put behind the template's as it is.

    Raises:
        DataError: the tokenizer has no ids for the text.
    """
    if not isinstance(prompt, str) and tokenizer.chat_template is not None:
        messages, beginning = list(prompt), ""
        if messages and messages[-1]["role"] == "assistant":
            beginning = messages.pop()["content"]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + beginning
    text = prompt_text(prompt)
    try:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise DataError(f"the tokenizer has no ids for the prompt {text[:80]!r}: {one_line(error)}") from error


def prompt_text(prompt: Prompt) -> str:
    """A prompt as plain text: the contents of its messages with an empty line between them."""
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


def token_text(tokenizer: Any, token: int) -> str:
    """What one id stands for, special tokens included; a replacement character where it is a part of a letter."""
    return str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def tokenizer_of(model: DiffusionModel) -> Any:
    """The model's tokenizer.

    Raises:
        ModelContractError: the model came without one.
    """
    if model.tokenizer is None:
        raise ModelContractError(
            "the model's folder has no tokenizer files, which text needs; put them beside the weights"
        )
    return model.tokenizer


def decode_until_eos(model: DiffusionModel) -> Callable[[Sequence[int]], str]:
    """A decoder of a model's completions: text up to the first end-of-text id, without special tokens.

    Raises:
        ModelContractError: the model came without a tokenizer.
    """
    tokenizer, ends = tokenizer_of(model), frozenset(model.spec.eos_ids)

    def decode(ids: Sequence[int]) -> str:
        end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        return str(tokenizer.decode(list(ids[:end]), skip_special_tokens=True))

    return decode
