"""``dllm-rl eval`` and ``dllm-rl compare``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_rl.cli.common import (
    add_sampling,
    device_of,
    pairs_of,
    refuse_unwritable,
    refuse_unwritable_folder,
    settings_of,
)
from dllm_rl.errors import RecipeError

if TYPE_CHECKING:
    from dllm_rl.evaluation.sitting import Shard


def evaluate(arguments: argparse.Namespace) -> int:
    """Measure a model, or score completions in a file; not 0 if a process of several failed."""
    tasks = arguments.tasks.split(",")
    alone = len(tasks) == 1  # then the file needs no name
    data = pairs_of("--data", [f"{tasks[0]}={each}" if alone and "=" not in each else each for each in arguments.data])
    if unknown := data.keys() - set(tasks):
        raise RecipeError(f"--data {min(unknown)}: not among --tasks {arguments.tasks}")
    if (arguments.score is None) == (arguments.model is None):
        raise RecipeError("eval: give a model that answers, or --score FILE with completions; one of the two")
    if arguments.out is not None and Path(arguments.out).suffix == ".jsonl" and len(tasks) > 1:
        raise RecipeError(f"--out {arguments.out}: takes the records of one task, and --tasks names {len(tasks)}")
    if arguments.score is not None:
        _score(arguments, tasks, data)
        return 0
    if arguments.processes > 1:
        return _in_processes(arguments)
    _answer(arguments, tasks, data)
    return 0


def _score(arguments: argparse.Namespace, tasks: Sequence[str], data: dict[str, str]) -> None:
    from dllm_rl.evaluation.run import score_file
    from dllm_rl.evaluation.store import write_records
    from dllm_rl.evaluation.summary import lines_of

    if len(tasks) != 1:
        raise RecipeError(f"--score {arguments.score}: holds completions of one task, and --tasks names {len(tasks)}")
    if arguments.out is not None:
        refuse_unwritable("--out", Path(arguments.out))
    result = score_file(tasks[0], Path(arguments.score), data.get(tasks[0]))
    print("\n".join(lines_of(tasks[0], result)))
    if arguments.out is not None:
        write_records(Path(arguments.out), result.records)


def _answer(arguments: argparse.Namespace, tasks: Sequence[str], data: dict[str, str]) -> None:
    from dllm_rl.cli.progress import Bar
    from dllm_rl.evaluation.measure import evaluate_model
    from dllm_rl.evaluation.summary import lines_of

    if arguments.out is not None:
        _refuse_unwritable_place(Path(arguments.out))
    shard, bar = shard_of_environment(), Bar()
    results = evaluate_model(
        arguments.model,
        tasks,
        settings_of(arguments),
        data=data,
        prompt=arguments.prompt,
        limit=arguments.limit,
        samples=arguments.samples,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        dtype=arguments.dtype,
        device=device_of(arguments),
        revision=arguments.revision,
        out=arguments.out,
        shard=shard,
        progress=bar,
    )
    for task, result in results.items():
        print("\n".join(lines_of(task, result)), flush=True)
    if len(results) < len(tasks):
        print(f"dllm-rl: process {shard.rank} of {shard.world} has given its answers", file=sys.stderr)


def _refuse_unwritable_place(out: Path) -> None:
    if out.suffix == ".jsonl" and out.is_dir():
        raise RecipeError(f"--out {out}: cannot be written: it is a folder")
    refuse_unwritable_folder("--out", out.parent if out.suffix == ".jsonl" else out)


def shard_of_environment() -> Shard:
    """This process's share, as a launcher (accelerate, torchrun, --processes) tells it."""
    from dllm_rl.evaluation.sitting import Shard

    return Shard(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def _in_processes(arguments: argparse.Namespace) -> int:
    """Run this command in several processes; whichever finishes last prints the results."""
    if "RANK" in os.environ:
        raise RecipeError("--processes: a launcher has started several processes already; leave it out")
    if arguments.out is None:
        raise RecipeError(f"--processes {arguments.processes}: processes share their answers by files; give --out")
    command, count = [sys.executable, "-m", "dllm_rl", *_without_processes(arguments.argv)], arguments.processes
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)} for rank in range(count)]
    children = [subprocess.Popen(command, env=os.environ | place) for place in places]
    try:
        return max(abs(child.wait()) for child in children)
    finally:
        for child in children:
            child.terminate()


def _without_processes(argv: Sequence[str]) -> list[str]:
    """The same command for one process: the last --processes wins."""
    return [*argv, "--processes", "1"]


def compare(arguments: argparse.Namespace) -> None:
    """Print how two evaluations differ."""
    from dllm_rl.evaluation.compare import compare_runs, table

    comparisons = compare_runs(Path(arguments.first), Path(arguments.second), force=arguments.force)
    print(table(comparisons, arguments.first, arguments.second))


def add_eval(parser: argparse.ArgumentParser) -> None:
    """The arguments of `eval`."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="hub id, folder of weights or folder of a run")
    parser.add_argument(
        "--tasks", metavar="NAMES", required=True, help="comma-separated; gsm8k, or a file such as mine.py"
    )
    parser.add_argument("--score", metavar="FILE", help="a .jsonl file of completions to score instead of a model's")
    parser.add_argument("--data", metavar="[TASK=]PATH", action="append", default=[], help="rows of a task; repeatable")
    parser.add_argument("--prompt", metavar="NAME", help="variant of the prompt, such as d1 (default: the task's own)")
    parser.add_argument("--limit", type=int, help="use only the first examples")
    parser.add_argument("--samples", type=int, default=1, help="answers to each example, for avg@k and pass@k")
    parser.add_argument("--batch-size", type=int, default=64, help="completions per forward (default: %(default)s)")
    parser.add_argument(
        "--out",
        metavar="PLACE",
        help="folder, or .jsonl file for one task: a line for every answer; run again, it goes on from there",
    )
    parser.add_argument("--processes", type=int, default=1, help="share the work among this many, one per accelerator")
    parser.add_argument("--revision", help="commit, tag or branch of a hub model")
    add_sampling(parser)


def add_compare(parser: argparse.ArgumentParser) -> None:
    """The arguments of `compare`."""
    parser.add_argument("first", metavar="A", help="what `eval --out` wrote: a folder, or a .jsonl file")
    parser.add_argument("second", metavar="B", help="the same of another model")
    parser.add_argument("--force", action="store_true", help="compare although more than the model differs")
