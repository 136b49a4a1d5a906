"""Learning ledger of the quickstart: held-out accuracy along the way for three seeds. `make results` runs it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2)
NAME = "eval/arithmetic/accuracy"


def run(seed: int) -> dict[str, Any]:
    """One quickstart through the command line."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "recipes/quickstart.yaml", f"output={folder}/run", f"train.seed={seed}"]
        subprocess.run(command, cwd=ROOT, check=True)
        seconds = time.perf_counter() - start
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    points = [(line["update"], line[NAME]) for line in lines if NAME in line]
    values = [value for _, value in points]
    fall = max(max(values[: i + 1]) - value for i, value in enumerate(values))
    return {"seed": seed, "seconds": round(seconds), "accuracy": points, "largest_fall_below_best": round(fall, 4)}


def main() -> None:
    """Run the seeds, write the ledger, print its table."""
    runs = [run(seed) for seed in SEEDS]
    ledger = {
        "command": "make results",
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "problems": 1000,
        "runs": runs,
    }
    (ROOT / "results" / "quickstart.json").write_text(json.dumps(ledger, indent=1) + "\n", encoding="utf-8")
    print("| seed | before | after 15 updates | after 100 | largest fall below the best before | seconds |")
    print("|---|---|---|---|---|---|")
    for each in runs:
        at = dict(each["accuracy"])
        print(
            f"| {each['seed']} | {at[0]:.3f} | {at[15]:.3f} | {at[100]:.3f} | {each['largest_fall_below_best']:.3f} "
            f"| {each['seconds']} |"
        )


if __name__ == "__main__":
    main()
