"""Ceilings, so that nobody has to argue about them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    file
    for folder in ("dllm_rl", "rewards", "eval", "recipes", "benchmarks", "results")
    for file in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_stay_small(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"


def test_the_start_up_hook_stays_small() -> None:
    assert len((ROOT / "dllm_rl/_launcher.py").read_text(encoding="utf-8").splitlines()) <= 45
    for name in ("dllm_rl.pth", "dllm_rl.start"):
        assert len((ROOT / "startup" / name).read_text(encoding="utf-8").splitlines()) == 1
