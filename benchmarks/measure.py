"""How benchmarks measure: seconds in turn, live memory at its peak, and the facts that go with every number."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
LEAST_FREE_GB = 6.0
TWO_THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
"""Threads that do not spin while they wait, so that their CPU time is work."""
LIVE_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1048576"}
"""Every tensor of a megabyte or more goes back to the system when it is freed: resident memory is then live memory."""


def kilobytes(file: str, field: str) -> int:
    """A field of a file in /proc."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(file).read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, f"{file} has no {field}"
    return int(found[1])


def options(description: str | None, quick: str) -> argparse.ArgumentParser:
    """What every benchmark can be asked on the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help=f"{quick}: does it still run?")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser


def refuse_little_memory() -> None:
    """End with one line where the plain side could push others out of memory."""
    free = kilobytes("/proc/meminfo", "MemAvailable") / 1e6
    if free < LEAST_FREE_GB:
        sys.exit(f"{free:.1f} GB of memory are free; expected at least {LEAST_FREE_GB} GB. Try again later")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call took."""

    seconds: float
    cpu_seconds: float
    """Of all its threads: what other programs do changes it little."""
    peak_mb: float
    """Resident memory at its highest, above what stood before the call, MB (10^6 bytes)."""


def cost(run: Callable[[], object]) -> Cost:
    """Run once and measure. Linux with glibc; `run` must leave no thread busy."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was kept for reuse would hide as much of the peak
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before = kilobytes("/proc/self/status", "VmRSS")
    start, cpu_start = time.perf_counter(), time.process_time()
    run()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Cost(seconds, cpu_seconds, (kilobytes("/proc/self/status", "VmHWM") - before) * 1024 / 1e6)


def interleaved(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[Cost]]:
    """Every side in turn, so that whatever else the machine does falls on all of them."""
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            costs[name].append(cost(run))
    return costs


def in_own_process(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Any:
    """What `python -m module` prints last, as JSON."""
    command = [sys.executable, "-m", module, *arguments]
    found = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment}
    )
    if found.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {found.returncode}; its own lines are above")
    return json.loads(found.stdout.splitlines()[-1])


def medians(costs: Sequence[Cost]) -> dict[str, float]:
    return {
        "seconds": median(each.seconds for each in costs),
        "cpu_seconds": median(each.cpu_seconds for each in costs),
    }


def times_faster(slow: Sequence[Cost], fast: Sequence[Cost]) -> dict[str, float]:
    """Medians over repeats of the ratio within a repeat, by the clock and in CPU time."""
    pairs = list(zip(slow, fast, strict=True))
    return {
        "times_faster": median(a.seconds / b.seconds for a, b in pairs),
        "times_faster_cpu": median(a.cpu_seconds / b.cpu_seconds for a, b in pairs),
    }


def facts(command: str) -> dict[str, Any]:
    """What has to stand beside a number: how, when, on what, and how busy that was."""
    import torch

    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{os.cpu_count()} shared CPU cores, {platform.machine()}, no GPU",
        "torch": torch.__version__,
        "load_average_at_start": os.getloadavg()[0],
    }


def write(name: str, found: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
