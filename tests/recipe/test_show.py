from __future__ import annotations

from pathlib import Path

import pytest

from dllm_rl.recipe.load import load_recipe
from dllm_rl.recipe.show import as_json, as_yaml

RECIPE = {
    "algorithm": {"type": "diffu_grpo", "clip_low": 1e-6, "corruption": {"type": "fixed_count"}},
    "model": {"path": "no", "lora": {"r": 4, "target_modules": ["a", "b"]}},
    "data": {"path": "1e-6", "prompt": "first: {question} # not a comment\nsecond\n", "options": {"digits": [1, 2]}},
    "reward": ["a.py:f", "b.py:g"],
    "rollout": {"steps": 128},
    "train": {"learning_rate": 3e-6, "report_to": "none", "lr_scheduler_kwargs": {"num_cycles": 0.5}},
    "eval": {"tasks": ["gsm8k"], "paths": {"gsm8k": "rows: here.jsonl"}},
    "output": "null",
}


@pytest.mark.parametrize(("name", "form"), [("shown.yaml", as_yaml), ("recipe.json", as_json)])
def test_what_is_shown_reads_back_to_the_same_recipe(tmp_path: Path, name: str, form: object) -> None:
    recipe = load_recipe(RECIPE)
    assert callable(form)
    (tmp_path / name).write_text(form(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / name) == recipe


def test_every_value_is_shown_with_its_sentence() -> None:
    text = as_yaml(load_recipe(RECIPE))
    assert text.startswith("---\n")
    assert "\nalgorithm:\n  type: diffu_grpo\n" in text and "  corruption:\n    type: fixed_count\n" in text
    assert "  # Completions per prompt: the group whose rewards are compared.\n  num_generations: 8\n" in text
    assert "  # Tokens of a completion.\n  gen_length: 256\n" in text
