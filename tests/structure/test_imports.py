"""Imports point one way, and every module can be imported first."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "dllm_rl"
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
    if "_shipped" not in file.parts
}

BELOW: dict[str, set[str]] = {
    "errors": set(),
    "shipped": {"errors"},
    "rng": set(),
    "_launcher": set(),
    "diffusion": {"rng", "errors"},
    "objectives": set(),
    "scoring": {"errors"},
    "samplers": {"diffusion", "rng", "errors"},
    "models": {"diffusion", "rng", "errors"},
    "toys": {"models", "diffusion", "rng", "errors"},
    "algorithms": {"diffusion", "objectives", "rng", "errors"},
    "rollouts": {"samplers", "models", "diffusion", "shipped", "rng", "errors"},
    "evaluation": {"rollouts", "samplers", "models", "diffusion", "scoring", "shipped", "rng", "errors"},
    "training": {"algorithms", "objectives", "rollouts", "models", "diffusion", "rng", "errors"},
    "recipe": {
        *("training", "algorithms", "objectives", "rollouts", "evaluation", "scoring", "models"),
        *("toys", "samplers", "diffusion", "shipped", "rng", "errors"),
    },
}
TOP = {"cli", "__main__", "__init__"}
"""May import anything below."""
DECLARATIVE = {"schema", "fit", "load", "show", "explain", "upstream", "yaml12"}
"""Modules of `recipe` that describe and check: of the package they may import algorithms, samplers' names, shipped and
errors only. None imports torch, see below."""
UPSTREAM = {"transformers", "peft", "accelerate", "trl", "datasets", "deepspeed"}
KNOWS_UPSTREAM = {"models", "training", "rollouts", "evaluation", "toys", "recipe"}


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module: str) -> str:
    """The package or module right below dllm_rl, "__init__" for dllm_rl itself."""
    return module.split(".")[1] if "." in module else "__init__"


def test_every_part_has_its_place() -> None:
    assert {part(module) for module in MODULES} == BELOW.keys() | TOP


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    here = part(module)
    if here in TOP:
        return
    names = {name for name in imports(MODULES[module]) if name.split(".")[0] == "dllm_rl" and name != "dllm_rl"}
    assert {part(name) for name in names} <= BELOW[here] | {here}
    if here == "recipe" and module.split(".")[-1] in DECLARATIVE:
        used = {name.split(".")[1] for name in names} - {"recipe"}
        assert used <= {"algorithms", "samplers", "shipped", "errors"}
        assert {name.split(".")[2] for name in names if part(name) == "recipe" and name.count(".") > 1} <= DECLARATIVE


@pytest.mark.parametrize("module", MODULES)
def test_upstream_training_libraries_stay_where_they_belong(module: str) -> None:
    if UPSTREAM & {name.split(".")[0] for name in imports(MODULES[module])}:
        assert part(module) in KNOWS_UPSTREAM


def test_objectives_know_torch_and_nothing_else() -> None:
    for module in MODULES:
        if part(module) == "objectives":
            outside = {name.split(".")[0] for name in imports(MODULES[module])} - set(sys.stdlib_module_names)
            assert outside <= {"torch", "jaxtyping", "dllm_rl"}


ALONE = """
import importlib, os, sys
import torch, transformers, peft, trl, accelerate, datasets  # once, for all copies made below
assert not any(name.split('.')[0] == 'dllm_rl' and name not in ('dllm_rl', 'dllm_rl._launcher') for name in sys.modules)
failed = []
for module in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(module)
        except BaseException as error:
            print(f'{module}: {type(error).__name__}: {error}', file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(module)
sys.exit(bool(failed))
"""


@pytest.mark.slow
def test_every_module_imports_alone() -> None:
    modules = [module for module in MODULES if module != "dllm_rl.__main__"]
    done = subprocess.run([sys.executable, "-c", ALONE, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, dllm_rl, dllm_rl.algorithms, dllm_rl.recipe.load; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
