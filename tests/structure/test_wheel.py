"""The wheel holds everything an installed package needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("dllm_rl-*.whl")
    return file


def files(folder: str, pattern: str) -> set[str]:
    return {str(file.relative_to(ROOT)) for file in (ROOT / folder).rglob(pattern) if "__pycache__" not in file.parts}


def test_it_holds_every_module_the_page_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert files("dllm_rl", "*.py") | files("dllm_rl", "*.html") | {"dllm_rl/py.typed"} <= names
    assert "dllm_rl/rollouts/replay.html" in names


def test_it_ships_recipes_rewards_and_tasks(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = files("recipes", "*.yaml") | files("recipes", "*.py") | files("rewards", "*.py") | files("eval", "*.py")
    assert len(shipped) > 10
    assert {f"dllm_rl/_shipped/{name}" for name in shipped} <= names


def test_nothing_else_lands_beside_the_package(wheel: Path) -> None:
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"dllm_rl", "dllm_rl.pth", "dllm_rl.start"}
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "__pycache__" in name]


def test_its_start_up_file_installs_the_hook(wheel: Path, tmp_path: Path) -> None:
    """Unpacked as site-packages of an interpreter that sees nothing else."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        f"import site, sys; site.addsitedir({str(tmp_path)!r}); "
        "hook = sys.path_hooks[-1]; print(hook.__module__, hook.__name__)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["dllm_rl._launcher", "_RecipeFinder"]
