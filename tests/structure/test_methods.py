"""A method is one small file: how small is counted."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from pathlib import Path
from typing import get_args

import pytest

from dllm_rl.algorithms import AlgorithmSection

ROOT = Path(__file__).resolve().parents[2]
METHODS = get_args(get_args(AlgorithmSection)[0])
FILES = [Path(inspect.getfile(method)) for method in METHODS]


def code_lines(text: str) -> int:
    """Lines that hold anything but blanks, comments and strings that stand alone (docstrings, of fields too)."""
    documentation: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documentation |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    spoken = {line for t in tokens if t.type not in silent for line in range(t.start[0], t.end[0] + 1)}
    return len(spoken - documentation)


def test_lines_are_counted_as_said() -> None:
    text = '"""Module."""\n\n# comment\nx = (\n    1,  # one\n)\n"""Of x,\nin two lines."""\n\n'
    text += 'def f():\n    """F."""\n    return x\n'
    assert code_lines(text) == 5


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_method_takes_fewer_than_150_lines_of_code(file: Path) -> None:
    count = code_lines(file.read_text(encoding="utf-8"))
    print(f"{file.stem}: {count} lines of code, {len(file.read_text(encoding='utf-8').splitlines())} in all")
    assert count < 150


def test_methods_are_one_file_each() -> None:
    assert len(set(FILES)) == len(METHODS)
    assert {method.model_fields["type"].default for method in METHODS} == {file.stem for file in FILES}


def test_all_that_a_method_with_noise_of_its_own_took_is_fewer_than_150_lines() -> None:
    """MaskGRPO: its file, its corruptor and its registration, documentation and blank lines counted."""
    file = (ROOT / "dllm_rl/algorithms/mask_grpo.py").read_text(encoding="utf-8").splitlines()
    corruption = ast.parse((ROOT / "dllm_rl/diffusion/corruption.py").read_text(encoding="utf-8")).body
    (corruptor,) = (node for node in corruption if isinstance(node, ast.ClassDef) and node.name == "FadingOut")
    assert corruptor.end_lineno is not None
    noise = corruptor.end_lineno - corruptor.lineno + 2  # and its decorator
    registration = (ROOT / "dllm_rl/algorithms/__init__.py").read_text(encoding="utf-8").count("MaskGRPO")
    assert len(file) + noise + registration < 150
