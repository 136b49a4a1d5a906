from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants_tool", HERE / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SOURCE = '''
"""Docstring 1 + 1."""
from math import pi

def f(x: int, *, flag: bool = True) -> int:
    """Docstring."""
    if x < 0:
        raise ValueError(f"{x + 1}")
    y = -x + 2.5
    y = y.sum(-1).mean(dim=0)
    z = not flag and x == y
    return z | 3
'''


def test_every_operator_finds_its_places_and_nothing_else(tool: ModuleType) -> None:
    found = {(m.operator, m.removed.splitlines()[0], m.added) for m in tool.mutants_of("f.py", SOURCE)}
    assert found == {
        ("constant", "def f(x: int, *, flag: bool=True) -> int:", "def f(x: int, *, flag: bool=False) -> int:"),
        ("dropped statement", "if x < 0:", "pass"),
        ("comparison", "if x < 0:", "if x <= 0:"),
        ("comparison", "if x < 0:", "if x >= 0:"),
        ("constant", "if x < 0:", "if x < 1:"),
        ("dropped statement", "raise ValueError(f'{x + 1}')", "pass"),
        ("arithmetic", "y = -x + 2.5", "y = -x - 2.5"),
        ("sign", "y = -x + 2.5", "y = x + 2.5"),
        ("constant", "y = -x + 2.5", "y = -x + 3.5"),
        ("dropped statement", "y = y.sum(-1).mean(dim=0)", "pass"),
        ("dimension", "y = y.sum(-1).mean(dim=0)", "y = y.sum(-2).mean(dim=0)"),
        ("dimension", "y = y.sum(-1).mean(dim=0)", "y = y.sum(-1).mean(dim=1)"),
        ("boolean", "z = not flag and x == y", "z = not flag or x == y"),
        ("boolean", "z = not flag and x == y", "z = flag and x == y"),
        ("comparison", "z = not flag and x == y", "z = not flag and x != y"),
        ("dropped statement", "return z | 3", "pass"),
        ("boolean", "return z | 3", "return z & 3"),
        ("constant", "return z | 3", "return z | 4"),
    }


def test_each_mutant_has_its_own_code_and_the_source_is_left_whole(tool: ModuleType) -> None:
    mutants = tool.mutants_of("f.py", SOURCE)
    texts = {ast.unparse(m.tree) for m in mutants}
    assert len(texts) == len(mutants)
    assert ast.unparse(ast.parse(SOURCE)) not in texts


def test_the_list_of_equivalents_gives_a_reason_for_each(tool: ModuleType) -> None:
    for (file, removed, added), reason in tool.read_equivalents().items():
        assert (tool.ROOT / file).is_file()
        assert removed != added
        assert len(reason) > 20
