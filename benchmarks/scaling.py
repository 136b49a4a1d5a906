"""One and two processes: how much more two do in the same time, on two cores, each process with one thread.

    python -m benchmarks.scaling               # about three minutes on two otherwise idle CPU cores

Twice: an update of diffu-GRPO under DistributedDataParallel (gloo), by the library's backward and by the plain
transcription, the same completions split over the processes; and a whole recipe, the quickstart's, through `accelerate
launch`, its time an update taken from a long and a short run, so that start-up is not in it.

A throughput ratio of 2 would be ideal. On a machine that others use too it says little: a program with two processes
is given more of it than one with one. The ratio in CPU time, work of one process over work of both together, says what
the split costs; 1 would be ideal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measure

WORLDS = (1, 2)
SIDES = ("plain", "dllm_rl")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
LONG, SHORT = 24, 4
"""Updates of the two runs of the recipe."""


Numbers = dict[str, float]


def worker(rank: int, world: int, meet: str, repeats: int, quick: bool) -> None:
    """One process of an update, both sides in turn; the first prints what it took, CPU time of all of them."""
    import torch
    from torch import distributed

    from benchmarks.cases import SMALL, assert_equal_updates

    assert_equal_updates(SMALL["diffu_grpo"])
    distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    updates = {side: update(side, world, quick) for side in SIDES}
    for run in updates.values():
        run()
    distributed.barrier()
    costs = measure.interleaved(updates, repeats)
    found = {}
    for side, each in costs.items():
        found[side] = measure.medians(each)
        everyone = torch.tensor(found[side]["cpu_seconds"], dtype=torch.float64)
        distributed.all_reduce(everyone)
        found[side]["cpu_seconds"] = float(everyone)
    if rank == 0:
        print(json.dumps(found))
    distributed.destroy_process_group()


def update(side: str, world: int, quick: bool) -> Callable[[], None]:
    """One process's share of an update of twelve completions; gradients are exchanged once, in its last backward."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from benchmarks.cases import Shape, make_case, make_model

    hidden, vocabulary = (16, 100) if quick else (128, 8_192)
    shape = Shape("diffu_grpo", 12 // world, 1, 64, 128, vocabulary=vocabulary, views_per_forward=3, hidden=hidden)
    model = make_model(shape)
    wrapped = DistributedDataParallel(model.network)
    case = make_case(shape, model.with_network(wrapped))
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=1e-6)

    def run() -> None:
        if side == "plain":
            case.plain()
        else:
            case.ours(lambda last: nullcontext() if last else wrapped.no_sync())
        optimizer.step()
        optimizer.zero_grad()

    return run


def updates_in(world: int, repeats: int, quick: bool) -> dict[str, Numbers]:
    """What an update took each side in so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        task = ["--repeats", str(repeats), "--world", str(world), "--meet", f"{folder}/meet"]
        command = [sys.executable, "-m", "benchmarks.scaling", *task, *(["--quick"] if quick else [])]
        started = [
            subprocess.Popen(
                [*command, "--rank", str(rank)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=measure.ROOT,
                env={**os.environ, **ONE_THREAD},
            )
            for rank in range(world)
        ]
        printed = [process.communicate(timeout=3600)[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"{' '.join(command)}: a process failed; its own lines are above")
    found: dict[str, Numbers] = json.loads(printed[0].splitlines()[-1])
    return found


def recipe_in(world: int, repeats: int, updates: tuple[int, int]) -> Numbers:
    """Medians of what an update of the quickstart took: (long run - short run) / (updates of one - of the other)."""
    found = []
    for _ in range(repeats):
        short, long = (_run(world, count) for count in updates)
        found.append([(b - a) / (updates[1] - updates[0]) for a, b in zip(short, long, strict=True)])
    return {"seconds": median(each[0] for each in found), "cpu_seconds": median(each[1] for each in found)}


def _run(world: int, count: int) -> tuple[float, float]:
    """Seconds, and CPU seconds of all processes, of a run of the quickstart without evaluation."""
    alone = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    several = ["--config_file", str(measure.ROOT / "recipes/accelerate/ddp_cpu.yaml")]
    launcher = [str(Path(sys.executable).parent / "accelerate"), "launch", *(alone if world == 1 else several)]
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"train.max_steps={count}", f"train.per_device_train_batch_size={32 // world}"]
        settings += [f"output={folder}/run", "eval=null"]
        start, before = time.perf_counter(), os.times()
        subprocess.run(
            [*launcher, "-m", "dllm_rl", str(measure.ROOT / "recipes/quickstart.yaml"), *settings],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=measure.ROOT,
            env={**os.environ, **ONE_THREAD},
        )
        after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, cpu


def compared(costs: dict[int, Numbers]) -> dict[str, Any]:
    """Two processes against one."""
    one, two = (costs[world] for world in WORLDS)
    return {
        "one_process": one,
        "two_processes": two,
        "throughput_ratio": one["seconds"] / two["seconds"],
        "cpu_ratio": one["cpu_seconds"] / two["cpu_seconds"],
    }


def draw(lines: dict[str, Any], path: Path) -> None:
    """Throughput of two processes over that of one, by the clock and in CPU time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    places = range(len(lines))
    for shift, number, colour, label in (
        (-0.2, "throughput_ratio", "#0072b2", "throughput, 2 processes over 1 (ideal: 2)"),
        (0.2, "cpu_ratio", "#e69f00", "CPU time, 1 process over 2 together (ideal: 1)"),
    ):
        heights = [line[number] for line in lines.values()]
        bars = axes.bar([place + shift for place in places], heights, width=0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.2f")
    axes.set_xticks(list(places), list(lines))
    axes.set_ylabel("ratio")
    axes.set_ylim(0, 1.15 * max(2, *(line["throughput_ratio"] for line in lines.values())))
    figure.legend(loc="outside lower center", frameon=False)
    figure.savefig(path, dpi=110)


def report(lines: dict[str, Any]) -> str:
    rows = [
        (
            name,
            f"{line['one_process']['seconds']:.3f}",
            f"{line['two_processes']['seconds']:.3f}",
            f"{line['throughput_ratio']:.2f}",
            f"{line['one_process']['cpu_seconds']:.3f}",
            f"{line['two_processes']['cpu_seconds']:.3f}",
            f"{line['cpu_ratio']:.2f}",
        )
        for name, line in lines.items()
    ]
    head = ["an update of", "1 process, s", "2 processes, s", "throughput ratio", "1 process, CPU s"]
    return measure.table([*head, "2 processes, CPU s", "CPU ratio"], rows)


def main() -> None:
    parser = measure.options(__doc__, "small updates and no recipe")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--world", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meet", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        worker(arguments.rank, arguments.world, arguments.meet, arguments.repeats, arguments.quick)
        return
    facts = {} if arguments.quick else measure.facts(f"python -m benchmarks.scaling --repeats {arguments.repeats}")
    costs = {world: updates_in(world, 5 * arguments.repeats, arguments.quick) for world in WORLDS}
    lines = {
        f"diffu-GRPO,\n{name}": compared({world: costs[world][side] for world in WORLDS})
        for side, name in (("plain", "plain"), ("dllm_rl", "dllm_rl"))
    }
    if not arguments.quick:
        recipe = {world: recipe_in(world, arguments.repeats, (SHORT, LONG)) for world in WORLDS}
        lines["the quickstart,\nwhole recipe"] = compared(recipe)
    print(report({name.replace("\n", " "): line for name, line in lines.items()}))
    if not arguments.quick:
        measure.write("scaling", facts | {name.replace("\n", " "): line for name, line in lines.items()}, arguments.out)
        draw(lines, arguments.out / "scaling.png")


if __name__ == "__main__":
    main()
