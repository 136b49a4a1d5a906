"""A whole task at once: while a model is trained, or from completions in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm_rl.errors import DataError
from dllm_rl.evaluation.answer import Item, answer, judge
from dllm_rl.evaluation.metrics import EvalResult, Record, result_of
from dllm_rl.evaluation.task import EvalTask, load_task, questions_of
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.rollouts.engine import RolloutEngine
from dllm_rl.rollouts.rows import read_rows

Gather = Callable[[list[Record]], list[Record]]


def run_task(
    engine: RolloutEngine,
    model: DiffusionModel,
    task: EvalTask,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    gather: Gather = list,
) -> EvalResult:
    """Let an engine answer a task, once, on processes that may hold one model together.

    Args:
        model: see `answer`.
        limit: use only the first examples.
        batch_size: prompts per call of the engine.
        seed: example i is answered with the key of (seed, i), whatever the batch size and the world.
        rank: of this process; examples rank, rank + world, ... are answered here. Every process makes equally many
            calls: one that runs out of examples answers the last one again, which is dropped.
        gather: records of all processes, from this process's own (`accelerate.utils.gather_object`).

    Returns:
        The whole task's result, on every process.

    Raises:
        DataError: the task has no examples, or one cannot be used.
        ModelContractError: the model came without a tokenizer.
    """
    questions = questions_of(task, limit)
    rounds = -(-len(questions) // world)
    mine = [(min(rank + turn * world, len(questions) - 1), 0) for turn in range(rounds)]
    records: list[Record] = []
    for start in range(0, rounds, batch_size):
        records += answer(engine, model, questions, mine[start : start + batch_size], seed)
    return _merged(gather(records), len(questions), task)


def _merged(records: Sequence[Record], num_examples: int, task: EvalTask) -> EvalResult:
    """One record per example, in order; repeats of an example are equal, as its key is."""
    by_index = {record.index: record for record in records}
    if sorted(by_index) != list(range(num_examples)):
        missing = sorted(set(range(num_examples)) - set(by_index))
        raise DataError(f"task {task.name}: no record of example {missing[0]}; expected one of each from all processes")
    return result_of([by_index[index] for index in range(num_examples)])


def score_file(reference: str, file: Path, data: str | None = None) -> EvalResult:
    """Score completions that are already in a file, without a model.

    Args:
        reference: of the task; see `load_task`.
        file: .jsonl whose lines have `completion` and `index` (its example's place), and `sample` where an example has
            several answers, as `eval` writes them.
        data: local file with the task's rows; None: the task's own source.

    Returns:
        Records in the order of the lines; scores in the order in which the examples first occur.

    Raises:
        DataError: a line lacks a field or names an example that the task does not have.
    """
    lines = read_rows(file)
    questions = questions_of(load_task(reference, path=data))
    for number, line in enumerate(lines, start=1):
        index = line.get("index")
        if not isinstance(line.get("completion"), str) or not isinstance(index, int) or not 0 <= index < len(questions):
            raise DataError(
                f"{file}, line {number}: expected completion (text) and index (0 to {len(questions) - 1}), "
                f"found {line!r}"
            )
    items = _numbered(lines)
    if len(set(items)) < len(items):
        index, sample = next(item for item in items if items.count(item) > 1)
        raise DataError(f"{file}: example {index} has two samples {sample}; expected different numbers")
    unknown: list[int | None] = [None] * len(lines)
    return result_of(judge(questions, items, [line["completion"] for line in lines], unknown, unknown, unknown))


def _numbered(lines: Sequence[Mapping[str, Any]]) -> list[Item]:
    """Example and sample of each line; lines that do not say which sample they are count from 0."""
    seen: Counter[int] = Counter()
    items = []
    for line in lines:
        items.append((line["index"], line.get("sample", seen[line["index"]])))
        seen[line["index"]] += 1
    return items
