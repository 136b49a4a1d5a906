"""``dllm-rl overdenoised``: rows to train on, of those that a recipe names."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dllm_rl.cli.common import device_of, refuse_unwritable
from dllm_rl.errors import RecipeError


def add_overdenoised(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("recipe", metavar="RECIPE", help="its model, data, rollout (greedy) and reward are used")
    parser.add_argument("overrides", metavar="KEY.PATH=VALUE", nargs="*", help="changes, such as rollout.steps=64")
    parser.add_argument("--out", metavar="FILE", required=True, help="the rows, a .jsonl file for data.path")
    parser.add_argument("--limit", type=int, help="use only the first rows")
    parser.add_argument(
        "--right", type=float, default=1.0, help="the least reward that counts as right (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="completions per forward (default: %(default)s)")
    parser.add_argument("--device", help="such as cuda:0 (default: an accelerator if there is one)")


def overdenoised(arguments: argparse.Namespace) -> None:
    """Write the rows that the model had right at some step and wrong at the end, and count them."""
    from dllm_rl.recipe.load import load_recipe, recipe_file

    out = Path(arguments.out)
    if out.suffix != ".jsonl":
        raise RecipeError(f"--out {out}: holds one row a line; give a name that ends in .jsonl")
    if arguments.batch_size < 1:
        raise RecipeError(f"--batch-size {arguments.batch_size}: expected at least 1")
    limit = [] if arguments.limit is None else [f"data.limit={arguments.limit}"]
    recipe = load_recipe(arguments.recipe, [*arguments.overrides, *limit])
    refuse_unwritable("--out", out)
    from dllm_rl.recipe.overdenoised import Tally, judged_rows, write_over_denoised

    base = recipe_file(arguments.recipe).parent
    batches = judged_rows(recipe, base, batch_size=arguments.batch_size, device=device_of(arguments))
    tally = Tally()
    with out.open("w", encoding="utf-8") as file:
        for tally in write_over_denoised(batches, file, arguments.right):
            print(tally, file=sys.stderr)
    print(f"{tally}, written to {out}")
