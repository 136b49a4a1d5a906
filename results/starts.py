"""Makes the starting weights of the tiny recipes again, and tells how far they are from those shipped.

    python -m results.starts                   # about a quarter of an hour on one idle core; writes results/starts.json
    python -m results.starts column_sum        # one of them

With the code that made them, on the machine that made them, they came out bit for bit. Another processor or another
order of summing moves the last bits of every update: log-probabilities have been summed by tiles since.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from results.tiny.run import ROOT, run_python

FILE = ROOT / "results/starts.json"
SHIPPED = ROOT / "recipes/weights"
STARTS: Mapping[str, tuple[str, ...]] = {
    "arithmetic": ("tiny_sft",),
    "column_sum": ("tiny_column_sum_sft",),
    "small_sudoku": ("tiny_small_sudoku_sft",),
    "failing_sum": ("tiny_failing_sum_sft", "tiny_failing_sum_sft_2"),
}
"""The recipes that make each, one after the other; a later one starts from the weights of the one before."""


def make(name: str, folder: Path) -> tuple[Path, float]:
    """The folder of the weights made again, and the seconds that they took on a core."""
    start: list[str] = []
    seconds = 0.0
    for recipe in STARTS[name]:
        made = folder / recipe / "final"
        command = [f"recipes/{recipe}.yaml", *start, "eval.every=0", f"output={made.parent}"]
        seconds += run_python(command, str(folder))[1]
        start = [f"model.path={made}"]
    return made, seconds


def distance(one: Path, other: Path) -> float:
    """Relative L2 distance of all weights; 0 means bit for bit equal, infinity other names or shapes."""
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    if {name: part.shape for name, part in left.items()} != {name: part.shape for name, part in right.items()}:
        return math.inf
    if all(torch.equal(left[name], right[name]) for name in left):
        return 0.0
    moved = sum(float((left[name].double() - right[name].double()).square().sum()) for name in left)
    return math.sqrt(moved / sum(float(part.double().square().sum()) for part in right.values()))


def main() -> None:
    """Make the weights named, or all; keep what came out; print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *STARTS], default=list(STARTS))
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    for name in parser.parse_args().names:
        with tempfile.TemporaryDirectory() as folder:
            made, seconds = make(name, Path(folder))
            found[name] = {
                "relative_l2": distance(made, SHIPPED / name),
                "cpu_seconds": round(seconds, 1),
                "date": datetime.now(UTC).date().isoformat(),
                "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
            }
        FILE.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")
        print(name, found[name], flush=True)


if __name__ == "__main__":
    main()
