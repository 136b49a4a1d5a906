"""Running tasks: prompts to an engine, completions to scores, one record per example."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from dllm_rl.errors import DataError
from dllm_rl.evaluation.metrics import EvalResult, Record
from dllm_rl.evaluation.task import EvalTask, Example, Messages, load_task
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.load import load_model
from dllm_rl.rng import sample_keys
from dllm_rl.rollouts.engine import LocalEngine, RolloutEngine, RolloutSettings
from dllm_rl.rollouts.rows import read_rows
from dllm_rl.rollouts.text import decode_until_eos, encode_prompt, prompt_text
from dllm_rl.scoring.pool import POOL_SIZE

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
    """Let an engine answer a task.

    Args:
        model: its tokenizer encodes prompts (by its chat template if it has one) and decodes completions, up to the
            first end-of-text id.
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
    decode = decode_until_eos(model)
    if limit is not None and limit < 1:
        raise DataError(f"task {task.name}: limit is {limit}; expected at least 1, or None for all examples")
    examples = list(task.examples())[:limit]
    if not examples:
        raise DataError(f"task {task.name}: no examples; expected at least one")
    rounds = -(-len(examples) // world)
    mine = [min(rank + turn * world, len(examples) - 1) for turn in range(rounds)]
    records: list[Record] = []
    for start in range(0, rounds, batch_size):
        places = mine[start : start + batch_size]
        prompts = [_prompt(task, examples, place) for place in places]
        keys = sample_keys(seed, torch.tensor(places))
        written = engine.generate([encode_prompt(model.tokenizer, prompt) for prompt in prompts], keys)
        texts = [decode(ids) for ids in written.completions]
        records += _judge(task, examples, places, [prompt_text(p) for p in prompts], texts, written.nfe)
    return _merged(gather(records), len(examples), task)


def _prompt(task: EvalTask, examples: Sequence[Example], place: int) -> str | Messages:
    try:
        return task.prompt(examples[place])
    except KeyError as error:
        raise DataError(
            f"task {task.name}: example {place} has no column {error}; its columns are {', '.join(examples[place])}"
        ) from error


def _judge(
    task: EvalTask,
    examples: Sequence[Example],
    places: Sequence[int],
    prompts: Sequence[str],
    texts: Sequence[str],
    nfe: Sequence[int | None],
) -> list[Record]:
    with ThreadPoolExecutor(POOL_SIZE) as threads:
        scores = list(threads.map(lambda place, text: task.score(examples[place], text), places, texts))
    return [
        Record(place, prompt, text, score.answer, score.value, score.explanation, count)
        for place, prompt, text, score, count in zip(places, prompts, texts, scores, nfe, strict=True)
    ]


def _merged(records: Sequence[Record], num_examples: int, task: EvalTask) -> EvalResult:
    """One record per example, in order; repeats of an example are equal, as its key is."""
    by_index = {record.index: record for record in records}
    if sorted(by_index) != list(range(num_examples)):
        missing = sorted(set(range(num_examples)) - set(by_index))
        raise DataError(f"task {task.name}: no record of example {missing[0]}; expected one of each from all processes")
    ordered = tuple(by_index[index] for index in range(num_examples))
    return EvalResult([record.score for record in ordered], ordered)


def write_records(file: Path, records: Sequence[Record]) -> None:
    """One JSON object a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records), encoding="utf-8")


def evaluate_model(
    path: str,
    tasks: Sequence[str],
    settings: RolloutSettings,
    *,
    data: str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "cpu",
) -> dict[str, EvalResult]:
    """Load a model and let it answer tasks; `dllm-rl eval`.

    Args:
        path: of the model, as `load_model` takes it.
        tasks: see `load_task`.
        settings: how completions are sampled.
        data: local file with the rows, when there is a single task.

    Raises:
        DataError: rows were given for several tasks, or cannot be used.
        ModelContractError: the model has no tokenizer.
    """
    if data is not None and len(tasks) != 1:
        raise DataError(f"rows from {data} were given for {len(tasks)} tasks ({', '.join(tasks)}); expected one task")
    loaded = [load_task(task, path=data) for task in tasks]
    model = load_model(path, dtype=dtype, device=device)
    engine = LocalEngine(model, settings, batch_size)
    return {task.name: run_task(engine, model, task, limit=limit, batch_size=batch_size, seed=seed) for task in loaded}


def score_file(reference: str, file: Path, data: str | None = None) -> EvalResult:
    """Score completions that are already in a file, without a model.

    Args:
        reference: of the task; see `load_task`.
        file: .jsonl whose lines have `completion` and `index` (its example's place), as `write_records` writes them.
        data: local file with the task's rows; None: the task's own source.

    Raises:
        DataError: a line lacks a field or names an example that the task does not have.
    """
    task = load_task(reference, path=data)
    examples = list(task.examples())
    lines = read_rows(file)
    for number, line in enumerate(lines, start=1):
        index = line.get("index")
        if not isinstance(line.get("completion"), str) or not isinstance(index, int) or not 0 <= index < len(examples):
            raise DataError(
                f"{file}, line {number}: expected completion (text) and index (0 to {len(examples) - 1}), "
                f"found {line!r}"
            )
    places = [line["index"] for line in lines]
    prompts = [prompt_text(_prompt(task, examples, place)) for place in places]
    records = _judge(task, examples, places, prompts, [line["completion"] for line in lines], [None] * len(lines))
    return EvalResult([record.score for record in records], tuple(records))
