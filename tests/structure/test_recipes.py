"""Every shipped recipe is valid, of its own method, and names only what exists."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from dllm_rl.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
LAUNCHERS = sorted((ROOT / "recipes/accelerate").glob("*.yaml"))
METHOD = {
    "quickstart": "diffu_grpo",
    "tiny_sft": "sft",
    "igpo_sft": "sft",
    "planner": "planner_imitation",
    "tiny_column_sum": "diffu_grpo",
    "tiny_column_sum_sft": "sft",
    "tiny_failing_sum": "igpo",
    "tiny_failing_sum_sft": "sft",
    "tiny_failing_sum_sft_2": "sft",
    "tiny_small_sudoku": "diffu_grpo",
    "tiny_small_sudoku_sft": "sft",
}
"""Method of the recipes that are not named after theirs."""

each_recipe = pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)


@each_recipe
def test_a_recipe_is_valid_and_of_its_method(file: Path) -> None:
    assert load_recipe(file).algorithm.type == METHOD.get(file.stem, file.stem)


@each_recipe
def test_a_recipe_begins_with_the_command_that_runs_it(file: Path) -> None:
    """One that works from the root of a checkout."""
    commands = re.findall(r"^#\s+(accelerate launch .*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert f"recipes/{file.name}" in words
        load_recipe(file, [word for word in words if re.match(r"[a-z_.]+=", word)])
        for word in words:
            assert not word.endswith(".yaml") or (ROOT / word).is_file()


@each_recipe
def test_a_recipe_names_functions_and_tasks_that_exist(file: Path) -> None:
    recipe = load_recipe(file)
    functions = [*(recipe.reward.functions if recipe.reward else ()), *filter(None, [recipe.data.map])]
    for name in functions:
        path, _, function = name.partition(":")
        source = next(folder / path for folder in (file.parent, ROOT) if (folder / path).is_file())
        defined = ast.parse(source.read_text(encoding="utf-8")).body
        assert function in {node.name for node in defined if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for task in recipe.eval.tasks if recipe.eval else ():
        assert (ROOT / "eval" / f"{Path(task).stem}.py").is_file()


@each_recipe
def test_no_recipe_sets_the_size_of_the_world(file: Path) -> None:
    assert not {"num_processes", "local_rank", "ddp_backend", "use_cpu", "deepspeed", "fsdp"} & set(
        load_recipe(file).train.arguments
    )


@pytest.mark.parametrize("file", LAUNCHERS, ids=lambda file: file.stem)
def test_accelerate_reads_the_launcher_configurations(file: Path) -> None:
    config = load_config_from_file(str(file))
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert config.distributed_type.value == given["distributed_type"]
    assert config.num_processes > 1 and config.mixed_precision == "no"


def test_all_layouts_have_a_launcher_configuration() -> None:
    names = {"ddp", "ddp_cpu", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"}
    assert {file.stem for file in LAUNCHERS} == names
