"""What `check` finds without a model: missing folders and files, rewards that do not fit the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dllm_rl.errors import DllmRlError
from dllm_rl.recipe.check import check
from dllm_rl.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]


def _check(folder: Path, *overrides: str) -> list[str]:
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "1+1=", "answer": "2"}))
    base: list[Any] = [f"data.path={folder / 'rows.jsonl'}", "eval=null"]
    return list(check(load_recipe(ROOT / "recipes/quickstart.yaml", [*base, *overrides]), ROOT / "recipes"))


def test_what_is_in_order_is_told(tmp_path: Path) -> None:
    columns, rewards, worth = _check(tmp_path)
    assert columns.endswith("rows.jsonl has the columns prompt, answer")
    assert rewards == "reward: arithmetic.correctness"
    assert "arithmetic.correctness [0.0]" in worth


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=/nowhere", "there is no folder /nowhere"),
        ("model.path=runs/a/b", "there is no folder runs/a/b"),
        ("data.path=missing.jsonl", "no file missing.jsonl"),
        ("reward=rewards/arithmetic.py:corectness", "corectness"),
        ("reward=rewards/gsm8k.py:nothing", "nothing"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(DllmRlError, match=message):
        _check(tmp_path, override)
