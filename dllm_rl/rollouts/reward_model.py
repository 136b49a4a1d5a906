"""Reward models from the hub or a folder: a text in, one number out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from dllm_rl.errors import RecipeError, RewardError, one_line

Messages = Sequence[Mapping[str, str]]


class RewardModel:
    """A sequence classifier with one output, called as a reward function.

    A chat is written out with the model's own template, plain text is prompt and completion joined. One text a forward:
    padding would move where most of these models read their score, since their padding is often the EOS they end with.
    On the first GPU of the process if there is one, in the precision of the checkpoint.

    Args:
        path: hub id, with `@revision` if wanted, or a folder.

    Raises:
        RecipeError: it cannot be loaded, has not exactly one output, or lacks weights, as a language model does that
            was never trained to give rewards.
    """

    def __init__(self, path: str) -> None:
        self.path, _, revision = path.partition("@")
        source: dict[str, Any] = {"revision": revision or None}
        try:
            config = AutoConfig.from_pretrained(self.path, **source)
            if config.num_labels != 1:
                raise RecipeError(
                    f"{path}: gives {config.num_labels} numbers for a text; expected a reward model's one"
                )
            network, loaded = AutoModelForSequenceClassification.from_pretrained(
                self.path, dtype="auto", output_loading_info=True, **source
            )
            self.tokenizer: Any = AutoTokenizer.from_pretrained(self.path, **source)
        except (OSError, ValueError, KeyError, ImportError) as error:
            if isinstance(error, RecipeError):
                raise
            raise RecipeError(
                f"{path}: no reward model could be loaded ({one_line(error)}); expected a hub id or a folder of a "
                "sequence classifier with its tokenizer"
            ) from error
        if missing := sorted(loaded["missing_keys"]):
            raise RecipeError(f"{path}: holds no {missing[0]}; expected all weights of a sequence classifier")
        self.network: Any = network.requires_grad_(False).to(_device())

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One number per completion, as the model gives it.

        Raises:
            RewardError: a text is longer than the model reads, or is a chat and the model has no template.
        """
        return [self._score(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    @torch.no_grad()
    def _score(self, prompt: str | Messages, completion: str | Messages) -> float:
        ids = torch.tensor([self._ids(prompt, completion)], device=self.network.device)
        longest = getattr(self.network.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and ids.shape[1] > longest:
            raise RewardError(f"{self.path}: a text has {ids.shape[1]} tokens; the model reads {longest}")
        return float(self.network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0])

    def _ids(self, prompt: str | Messages, completion: str | Messages) -> list[int]:
        if isinstance(prompt, str) and isinstance(completion, str):
            return list(self.tokenizer(prompt + completion)["input_ids"])
        if self.tokenizer.chat_template is None:
            raise RewardError(f"{self.path}: has no chat template, and the data are chats; give text prompts")
        text = self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _device() -> torch.device:
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
