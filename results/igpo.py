"""The table of docs/igpo.md: IGPO and diffu-GRPO on sums whose groups mostly fail, three seeds, as many completions.

    python results/igpo.py            # some minutes on two idle CPU cores; writes results/igpo.json

IGPO writes groups that fail a second time, so diffu-GRPO, otherwise equal, makes 60 updates to its 40.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from dllm_rl.training.logging import read_metrics

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "results/igpo.json"
RECIPE = "recipes/tiny_failing_sum.yaml"
ACCURACY, REWARD = "eval/column_sum/accuracy", "reward/mean"
RUNS: dict[str, tuple[Sequence[str], str]] = {
    "IGPO": ((), "inpaint/failed_groups"),
    "IGPO, entropy share 0.2 as published": (("algorithm.entropy_share=0.2",), "inpaint/failed_groups"),
    "diffu-GRPO": (
        (
            "algorithm={type: diffu_grpo, kl_coefficient: 0.0, clip_low: 0.2, clip_high: 0.2, num_draws: 4, "
            "corruption: {type: fixed_count}}",
            "train.max_steps=60",
        ),
        "reward/zero_variance_groups",
    ),
}
"""What each line changes in the recipe, and the metric that says how many groups taught nothing by themselves."""
CELLS = (
    *(("IGPO", seed) for seed in (0, 1, 2)),
    ("IGPO, entropy share 0.2 as published", 0),
    *(("diffu-GRPO", seed) for seed in (0, 1, 2)),
)


def run(line: str, seed: int, extra: Sequence[str] = ()) -> dict[str, Any]:
    """One run through the command line, and what the table says of it.

    Args:
        extra: further overrides, which tests use to make a run short.
    """
    changes, failed = RUNS[line]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, RECIPE, *changes, f"train.seed={seed}", *extra, f"output={folder}/run"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        metrics = read_metrics(Path(folder, "run", "metrics.jsonl"))
    accuracy = [each[ACCURACY] for each in metrics if ACCURACY in each]
    learned = [each for each in metrics if REWARD in each]
    return {
        "line": line,
        "seed": seed,
        "accuracy": [accuracy[0], accuracy[-1]],
        "reward": _ends(learned, REWARD),
        "failed": _ends(learned, failed),
        "correct_candidates": _ends(learned, "inpaint/correct_candidates"),
        "completions": round(sum(_completions(each) for each in learned)),
    }


def _ends(metrics: Sequence[dict[str, Any]], name: str) -> list[float] | None:
    """Means over the first and the last ten updates; None for a metric that the run does not have."""
    values = [each[name] for each in metrics if name in each]
    return [round(fmean(values[:10]), 4), round(fmean(values[-10:]), 4)] if values else None


def _completions(metrics: dict[str, Any]) -> float:
    """Sampled in an update: 16 prompts of 8, and a second time for groups that failed."""
    return 128 * (1 + float(metrics.get("inpaint/failed_groups", 0.0)))


def table(runs: Sequence[dict[str, Any]]) -> str:
    """The table of docs/igpo.md."""
    lines = [
        "| | seed | accuracy after | reward | groups without a correct completion (all equal, for diffu-GRPO) |",
        "|---|---|---|---|---|",
    ]
    for each in runs:
        reward, failed = (f"{first:.3f} to {last:.3f}" for first, last in (each["reward"], each["failed"]))
        lines.append(f"| {each['line']} | {each['seed']} | {each['accuracy'][1]:.3f} | {reward} | {failed} |")
    return "\n".join(lines)


def main() -> None:
    """Run every cell, write the file, print the table."""
    runs = []
    for line, seed in CELLS:
        runs.append(run(line, seed))
        print(json.dumps(runs[-1]), flush=True)
    facts = {
        "command": "python results/igpo.py",
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
    }
    FILE.write_text(json.dumps({**facts, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
