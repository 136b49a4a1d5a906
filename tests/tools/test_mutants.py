from __future__ import annotations

import ast
import importlib.util
import sys
from collections import Counter
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
if TYPE_CHECKING:
    from math import tau

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


def test_a_module_and_a_package_can_be_given_other_code(tool: ModuleType) -> None:
    folder = str(tool.ROOT / "dllm_rl/objectives")
    for file, name in (("ratio.py", "dllm_rl.objectives.ratio"), ("__init__.py", "dllm_rl.objectives")):
        patch = tool.Patch(f"dllm_rl/objectives/{file}", ast.parse("broken = __name__"))
        assert patch.find_spec("dllm_rl.diffusion", None) is None
        module = importlib.util.module_from_spec(patch.find_spec(name, None))
        patch.exec_module(module)
        assert module.broken == name
        assert getattr(module, "__path__", None) == ([folder] if file == "__init__.py" else None)


@pytest.mark.parametrize(
    ("killed", "out_of_time", "survived", "equivalent", "passes"),
    [(94, 1, 5, 5, True), (94, 0, 6, 0, False), (94, 0, 0, 6, False), (95, 0, 0, 5, True)],
)
def test_the_verdict_wants_95_percent_killed_and_at_most_5_listed(
    tool: ModuleType,
    capsys: pytest.CaptureFixture[str],
    killed: int,
    out_of_time: int,
    survived: int,
    equivalent: int,
    passes: bool,
) -> None:
    mutants = killed + out_of_time + survived + equivalent
    one = Counter(mutants=2, killed=2)
    other = Counter(mutants=mutants - 2, killed=killed - 2, survived=survived, equivalent=equivalent)
    other["out of time"] = out_of_time
    assert tool.verdict({"a.py": one, "b.py": other}) is passes
    header, first, _, last = capsys.readouterr().out.splitlines()[1:5]
    assert header.split() == ["mutants", "killed", "out", "of", "time", "survived", "equivalent", "share"]
    assert first.split() == ["a.py", "2", "2", "0", "0", "0", "100.0%"]
    assert last.split()[:6] == ["all", *map(str, (mutants, killed, out_of_time, survived, equivalent))]
