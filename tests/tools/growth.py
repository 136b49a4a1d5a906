"""Whether the memory of a long run grows: resident size and Python's own blocks, after warm-up and at the end.

    python -m tests.tools.growth [--updates 2000] [--out benchmarks/results/growth.json]

The run is a whole one, with evaluations, checkpoints and its curve. Sizes are medians over the fifth and the last
tenth of the run's updates (what is imported when first needed is there by then); between them a run may grow by
RESIDENT in all and by BLOCKS an update.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.e2e import runs
from tests.tools import forked

RESIDENT = 2 * 2**20
"""Bytes in all, the allocator's slack: 2 KiB an update in a run of 2,000."""
BLOCKS = 4.0
"""Python's blocks an update: caches fill late. A line of metrics kept in memory is one block for every number in it."""
ALGORITHMS: dict[str, dict[str, Any]] = {
    "diffu_grpo": {"type": "diffu_grpo", "updates_per_rollout": 2},
    "vrpo": {"type": "vrpo", "num_draws": 2},
}
PAGE = os.sysconf("SC_PAGE_SIZE")


def measure(folder: Path, algorithm: str, updates: int) -> dict[str, Any]:
    """Run so many updates and say what they left."""
    tenth = updates // 10
    tree = runs.recipe(
        folder,
        ALGORITHMS[algorithm],
        algorithm,
        max_steps=updates,
        save_steps=tenth,
        save_total_limit=2,
        per_device_train_batch_size=2,
    )
    tree["eval"] = {"tasks": ["arithmetic"], "every": tenth, "gen_length": 5, "limit": 2, "batch_size": 2}
    if "rollout" in tree:
        tree["rollout"] |= {"num_generations": 2, "steps": 2}
    samples = folder / f"{algorithm}-samples.json"
    began = time.monotonic()
    output = folder / algorithm
    job = forked.start(
        runs.write(folder, tree, algorithm),
        output,
        folder / f"{algorithm}.log",
        inside=lambda: sample_at_each_line(output, max(1, tenth // 10)),
    )
    assert job.wait() == [0], job.log.read_text()[-3000:]
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    early, late = ([s for s in lines if low < s["update"] <= low + tenth] for low in (4 * tenth, 9 * tenth))
    middle = lambda part, name: statistics.median(sample[name] for sample in part)  # noqa: E731
    result = {
        "algorithm": algorithm,
        "updates": updates,
        "seconds": round(time.monotonic() - began, 1),
        "resident_early": middle(early, "resident"),
        "resident_late": middle(late, "resident"),
        "blocks_early": middle(early, "blocks"),
        "blocks_late": middle(late, "blocks"),
        "samples": lines,
    }
    resident = result["resident_late"] - result["resident_early"]
    blocks = (result["blocks_late"] - result["blocks_early"]) / (5 * tenth)
    grew = [
        name for name, found, bound in (("resident", resident, RESIDENT), ("blocks", blocks, BLOCKS)) if found > bound
    ]
    return result | {"verdict": f"grew: {', '.join(grew)}" if grew else "ok"}


def sample_at_each_line(output: Path, every: int) -> None:
    """From now on, measure this process whenever a line of metrics is written, every so many lines."""
    gc.freeze()  # what the imports made is neither counted nor walked through
    seen, samples = 0, output.with_name(f"{output.name}-samples.json")
    metrics = str(output / "metrics.jsonl")

    def audit(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open" and str(args[0]) == metrics and args[1] == "a":
            seen += 1
            if seen % every == 0:
                gc.collect()
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
                line = {"update": seen, "resident": resident, "blocks": sys.getallocatedblocks()}
                with samples.open("a") as file:
                    file.write(json.dumps(line) + "\n")

    sys.addaudithook(audit)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    forked.import_everything()
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        shop = runs.workshop(Path(folder))
        results = []
        for name in ALGORITHMS:
            results.append(measure(shop, name, arguments.updates))
            print(show(results[-1]), flush=True)
    grew = [r for r in results if r["verdict"] != "ok"]
    if arguments.out is not None:
        head = {
            "command": f"python -m tests.tools.growth --updates {arguments.updates}",
            "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} shared CPU cores, no GPU",
        }
        arguments.out.write_text(json.dumps({**head, "runs": results}, indent=1) + "\n")
    return 1 if grew else 0


def show(result: dict[str, Any]) -> str:
    early, late = (f"{result[name] / 2**20:.1f}" for name in ("resident_early", "resident_late"))
    return (
        f"{result['algorithm']:<12} {result['updates']} updates, {result['seconds']} s: resident {early} -> {late} "
        f"MiB, blocks {result['blocks_early']:.0f} -> {result['blocks_late']:.0f}  {result['verdict']}"
    )


if __name__ == "__main__":
    sys.exit(main())
