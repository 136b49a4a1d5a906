"""Every recipe as shipped becomes TrainingArguments, and settings that the run could not keep to are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainingArguments

from dllm_rl.errors import RecipeError
from dllm_rl.recipe.launch import set_length, training_arguments
from dllm_rl.recipe.load import load_recipe
from dllm_rl.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
ON_A_CPU = ["train.bf16=false"]


def arguments_of(recipe: Recipe, num_rows: int) -> TrainingArguments:
    made = training_arguments(recipe)
    set_length(made, recipe, num_rows)
    return made


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_shipped_recipes_can_be_trained_by_as_they_are(file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(file, [*ON_A_CPU, f"output={tmp_path}"])
    made = arguments_of(recipe, num_rows=1000)
    assert made.max_steps > 0 and made.max_steps % recipe.algorithm.num_iterations == 0
    assert made.learning_rate == recipe.train.arguments["learning_rate"]
    assert made.logging_steps == 1 and not made.logging_nan_inf_filter


def test_epochs_become_updates_and_windows_stay_whole(tmp_path: Path) -> None:
    base = [
        *ON_A_CPU,
        f"output={tmp_path}",
        "train.per_device_train_batch_size=4",
        "train.gradient_accumulation_steps=2",
    ]
    grpo = lambda *more: load_recipe(ROOT / "recipes/quickstart.yaml", [*base, *more])  # noqa: E731
    epochs = grpo(
        "train.max_steps=-1", "train.num_train_epochs=2", "algorithm.updates_per_rollout=3", "train.save_steps=3"
    )
    assert arguments_of(epochs, num_rows=20).max_steps == 5 * 3
    with pytest.raises(RecipeError, match="max_steps is 10, not a multiple of the 3 updates"):
        arguments_of(grpo("train.max_steps=10", "algorithm.updates_per_rollout=3"), 20)
    with pytest.raises(RecipeError, match="save_steps is 4, not a multiple of the 3 updates"):
        wrong = grpo("train.max_steps=9", "algorithm.updates_per_rollout=3", "train.save_steps=4")
        arguments_of(wrong, 20)
    with pytest.raises(RecipeError, match="the run has no length; give max_steps"):
        training_arguments(grpo("train.max_steps=-1"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.save_only_model=true", "could not go on"),
        ("train.neftune_noise_alpha=5", "ratio differ"),
        ("train.auto_find_batch_size=true", "depend on the machine"),
        ("train.ignore_data_skip=false", "data loader"),
        ("rollout.temperature=0", "rollout.temperature"),
        ("rollout.num_generations=1", "rollout.num_generations"),
        ("algorithm={type: diffu_grpo, num_draws: 3, corruption: {type: complementary}}", "draws in pairs"),
    ],
)
def test_settings_that_break_a_promise_are_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(ROOT / "recipes/quickstart.yaml", [override])
