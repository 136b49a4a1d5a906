"""Reward models: what they read, one text at a time, and folders that hold none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from dllm_rl.errors import RecipeError, RewardError
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.toys.tokenizer import LLADA_TEMPLATE, character_tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 110, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": character_tokenizer().pad_token_id,
}  # fmt: skip


def folder(path: Path, kind: Any = LlamaForSequenceClassification, template: str = "", **changes: Any) -> str:
    torch.manual_seed(0)
    kind(LlamaConfig(**{**SHAPE, "num_labels": 1, "attention_dropout": 0.5, **changes})).save_pretrained(path)
    tokenizer = character_tokenizer(chat_template=template)
    tokenizer.chat_template = template or None
    tokenizer.save_pretrained(path)
    return str(path)


def score(path: str, text: str) -> float:
    network = LlamaForSequenceClassification.from_pretrained(path)
    ids = torch.tensor([character_tokenizer()(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        return float(network(input_ids=ids).logits[0, 0])


def test_text_is_prompt_and_completion_joined_and_company_changes_nothing(tmp_path: Path) -> None:
    path = folder(tmp_path / "mine")
    panel = RewardPanel.load([str(path)])
    assert [f.name for f in panel.functions] == ["mine"]
    prompts, completions = ["1+1=", "a", "1+1="], ["2", "b" * 50, "333"]
    total = panel(prompts, completions, [[]] * 3, {"answer": ["x"] * 3}).total
    assert total == [score(path, p + c) for p, c in zip(prompts, completions, strict=True)]
    assert len(set(total)) == 3


def test_a_chat_is_written_in_the_model_s_own_template(tmp_path: Path) -> None:
    short = LLADA_TEMPLATE.partition("{% endfor %}")[0] + "{% endfor %}"
    path = folder(tmp_path, template=short)
    chat, answer = [{"role": "user", "content": "1+1?"}], [{"role": "assistant", "content": "2"}]
    text = character_tokenizer(chat_template=short).apply_chat_template([*chat, *answer], tokenize=False)
    assert text.endswith("2<|eot_id|>")
    assert RewardPanel.load([path])([chat], [answer], [[]], {}).total == [score(path, str(text))]


def test_what_it_cannot_read_is_refused(tmp_path: Path) -> None:
    panel = RewardPanel.load([folder(tmp_path)])
    assert len(panel(["1"], ["2" * 63], [[]], {}).total) == 1
    with pytest.raises(RewardError, match="a text has 65 tokens; the model reads 64"):
        panel(["1"], ["2" * 64], [[]], {})
    with pytest.raises(RewardError, match="has no chat template"):
        panel([[{"role": "user", "content": "1"}]], [[{"role": "assistant", "content": "2"}]], [[]], {})


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (LlamaForCausalLM, {}, "holds no score.weight"),
        (
            LlamaForSequenceClassification,
            {"num_labels": 3},
            "gives 3 numbers for a text; expected a reward model's one",
        ),
    ],
)
def test_models_that_are_no_reward_models(tmp_path: Path, kind: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        RewardPanel.load([folder(tmp_path, kind, **changes)])


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no reward model could be loaded"):
        RewardPanel.load([str(tmp_path)])
