"""Preference pairs for VRPO: the starting model's own rollouts, the best of a group against the worst.

    python -m results.tiny.pairs recipes/tiny_column_sum.yaml pairs.jsonl train.seed=1

The rollouts are those that an online method with this seed would draw if its weights never moved: the same prompts, the
same keys, equally many.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from dllm_rl.recipe.load import load_recipe, recipe_file
from dllm_rl.recipe.model import make_model
from dllm_rl.recipe.source import load_data, make_source
from dllm_rl.training.order import Layout
from dllm_rl.training.source import Sample


def preference_pairs(recipe_path: str, overrides: Sequence[str]) -> list[dict[str, str]]:
    """Columns prompt, chosen and rejected: one pair per group of rollouts that do not all have the same reward."""
    recipe = load_recipe(recipe_path, overrides)
    assert recipe.rollout is not None, "the ledger's recipes sample"
    base = recipe_file(recipe_path).parent
    model = make_model(recipe, base)
    arguments = recipe.train.arguments
    rows = load_data(recipe, base, model)
    source = make_source(recipe, base, rows, model, arguments["seed"], torch.device("cpu"))
    layout = Layout(rank=0, world=1, num_micro_batches=1, per_device=arguments["per_device_train_batch_size"])
    size = recipe.rollout.num_generations
    pairs = []
    with torch.no_grad():
        for window in range(arguments["max_steps"]):
            samples = source.harvest(window, layout, 0).samples
            pairs += [best_against_worst(samples[at : at + size]) for at in range(0, len(samples), size)]
    return [pair for pair in pairs if pair is not None]


def best_against_worst(group: list[Sample]) -> dict[str, str] | None:
    """The first of the best rollouts and the first of the worst; None where all are worth the same."""
    best, worst = max(group, key=_reward), min(group, key=_reward)
    if best.reward == worst.reward:
        return None
    return {"prompt": best.prompt, "chosen": best.completion, "rejected": worst.completion}


def _reward(sample: Sample) -> float:
    return sample.reward


def main(recipe_path: str, file: str, *overrides: str) -> None:
    """Write the pairs of a recipe, one JSON object a line."""
    pairs = preference_pairs(recipe_path, overrides)
    Path(file).write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
