"""What `python recipe.yaml` and `accelerate launch recipe.yaml` do, seen from outside: exit codes and streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_rl._launcher import install
from dllm_rl.toys.model import write_tiny_llada

ROOT = Path(__file__).resolve().parents[1]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
DOORS = {
    "python": [sys.executable],
    "isolated": [sys.executable, "-I"],
    "module": [sys.executable, "-m", "dllm_rl"],
    "accelerate": [*ACCELERATE, "--num_processes", "1", "--num_machines", "1"],
}
TWO_RANKS = [*ACCELERATE, "--config_file", str(ROOT / "recipes/accelerate/ddp_cpu.yaml")]

RECIPE = """# a comment may come first
---
algorithm: {type: sft}
model: {path: missing-model}
data: {path: missing.jsonl}
train: {max_steps: 1}
output: out
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "some recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def launch(door: list[str], *arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*door, *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def ours(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("dllm-rl: ")]


@pytest.mark.parametrize("door", ["python", "isolated", "module"])
def test_a_mistake_ends_with_one_line_and_code_2(door: str, recipe: Path) -> None:
    done = launch(DOORS[door], recipe, "train.max_stepz=3", folder=recipe.parent)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"dllm-rl: {recipe}: train.max_stepz: unknown key. Did you mean max_steps? "
        "Keys: those of transformers.TrainingArguments, and views_per_forward"
    )


def test_a_foreign_yaml_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    done = launch(DOORS["python"], ROOT / "recipes/accelerate/ddp.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "not a recipe: its keys are distributed_type" in done.stderr


@pytest.mark.slow
def test_accelerate_passes_the_recipe_its_overrides_and_the_failure(recipe: Path) -> None:
    done = launch(DOORS["accelerate"], recipe, "train.max_stepz=3", folder=recipe.parent)
    assert done.returncode != 0
    (line,) = ours(done.stderr)
    assert "train.max_stepz: unknown key. Did you mean max_steps?" in line


@pytest.mark.slow
def test_every_rank_of_two_tells_the_failure(recipe: Path) -> None:
    done = launch(TWO_RANKS, recipe, "train.max_stepz=3", folder=recipe.parent)
    assert done.returncode != 0
    assert 1 <= len(ours(done.stderr)) <= 2  # the launcher may stop the second rank before it speaks


@pytest.mark.slow
def test_a_valid_recipe_reaches_training(recipe: Path) -> None:
    """As far as the model that is not there, so through the hook, the overrides and the builder."""
    done = launch(DOORS["python"], recipe, "model.path=no/such-model-here", folder=recipe.parent)
    assert done.returncode == 2
    (line,) = ours(done.stderr)
    assert "no/such-model-here" in line


SPAWNING = """
import multiprocessing

def change(row):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (length,) = pool.map(len, [row["completion"]])
    return {**row, "completion": "x" * length}
"""


@pytest.mark.slow
def test_a_recipe_trains_and_its_spawned_children_do_not_run_it_again(recipe: Path) -> None:
    folder = recipe.parent
    write_tiny_llada(folder / "model")
    (folder / "mine.py").write_text(SPAWNING, encoding="utf-8")
    (folder / "rows.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n', encoding="utf-8")
    overrides = [
        "model.path=model",
        "data={path: rows.jsonl, map: mine.py:change}",
        "train.per_device_train_batch_size=1",
    ]
    done = launch(DOORS["python"], recipe, *overrides, folder=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "out/metrics.jsonl").is_file()


def test_without_the_hook_a_recipe_fails(recipe: Path) -> None:
    """-S starts without site-packages: no hook. The recipe is then read as Python, and must not exit 0."""
    done = launch([sys.executable, "-S"], recipe, folder=recipe.parent)
    assert done.returncode != 0 and "SyntaxError" in done.stderr


def test_python_files_still_run(tmp_path: Path) -> None:
    script = tmp_path / "x.py"
    script.write_text("import sys; print(sys.argv[1:])", encoding="utf-8")
    assert launch(DOORS["python"], script, "a=1", folder=tmp_path).stdout.strip() == "['a=1']"


def test_a_missing_recipe_is_an_error(tmp_path: Path) -> None:
    assert launch(DOORS["python"], "missing.yaml", folder=tmp_path).returncode != 0


def test_the_hook_costs_nothing_but_the_standard_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import dllm_rl._launcher; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; print(sorted(new - sys.stdlib_module_names))"
    )
    done = launch([sys.executable, "-S", "-c", program], folder=ROOT)
    assert done.stdout.strip() == "['dllm_rl']"


def test_installing_twice_adds_one_hook() -> None:
    before = list(sys.path_hooks)
    install()
    assert sys.path_hooks == before  # start-up installed it


def test_the_hook_leaves_other_paths_alone(tmp_path: Path) -> None:
    hook = next(hook for hook in sys.path_hooks if getattr(hook, "__name__", "") == "_RecipeFinder")
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    for path in (folder, tmp_path / "missing.yaml", Path(__file__)):
        with pytest.raises(ImportError):
            hook(str(path))


@pytest.mark.parametrize("command", ["check", "show", "cite"])
def test_commands_about_a_recipe_do_not_import_torch(command: str) -> None:
    program = (
        "import sys; from dllm_rl.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'peft', 'accelerate', 'trl', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = launch([sys.executable, "-c", program], command, ROOT / "recipes/vrpo.yaml", folder=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
