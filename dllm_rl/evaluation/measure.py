"""A model on disk answers tasks: `dllm-rl eval`. Shared among processes, kept as it goes, taken up again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from dllm_rl.errors import DataError, RecipeError
from dllm_rl.evaluation.metrics import EvalResult
from dllm_rl.evaluation.protocol import protocol_of
from dllm_rl.evaluation.revision import revision_of
from dllm_rl.evaluation.sitting import Examinee, Progress, Shard, Sitting
from dllm_rl.evaluation.task import EvalTask, load_task, questions_of
from dllm_rl.rollouts.engine import RolloutSettings


def evaluate_model(
    path: str,
    tasks: Sequence[str],
    settings: RolloutSettings,
    *,
    data: str | Mapping[str, str] | None = None,
    prompt: str | None = None,
    limit: int | None = None,
    samples: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "cpu",
    revision: str | None = None,
    out: str | Path | None = None,
    shard: Shard | None = None,
    progress: Progress | None = None,
) -> dict[str, EvalResult]:
    """Let a model answer tasks.

    What an example is answered does not depend on how the work is shared or on interruptions: batches are the same for
    any number of processes, and one that was cut short is answered again as a whole.

    Args:
        path: of the model, as `load_model` takes it.
        tasks: see `load_task`.
        settings: how completions are sampled.
        data: local files with the rows, by task; or one, when there is a single task.
        prompt: variant of the prompt; see `load_task`.
        samples: answers to each example.
        batch_size: answers per call of the engine; what is lost at most when a process is killed.
        out: where records go: a .jsonl file for a single task, else a folder. Answers that are there are not asked for
            again. None: nothing is kept.
        shard: this process's share; None: everything.
        progress: looks on.

    Returns:
        Results by task; without those that other processes are still working at.

    Raises:
        RecipeError: the folder holds another evaluation, or samples or the batch size is below 1.
        DataError: rows were given for several tasks, or cannot be used.
        ModelContractError: the model has no tokenizer.
    """
    if out is None and shard is not None and shard.world > 1:
        raise RecipeError(f"{shard.world} processes share their answers by files; give a folder (--out)")
    for name, value in (("samples", samples), ("batch size", batch_size)):
        if value < 1:
            raise RecipeError(f"{name} is {value}; expected at least 1")
    loaded = _load(tasks, data, prompt)
    weights = revision_of(path, revision)
    sittings = []
    for task in loaded:
        questions = questions_of(task, limit)
        protocol = protocol_of(
            questions, samples=samples, model=path, revision=weights, dtype=dtype, settings=settings, seed=seed
        )
        sittings.append(Sitting(questions, protocol, batch_size, shard or Shard(), out))
    found = _sit(sittings, Examinee(path, settings, dtype, device, revision), progress or Progress())
    return {task: result for task, result in found.items() if result is not None}


def _load(tasks: Sequence[str], data: str | Mapping[str, str] | None, prompt: str | None) -> list[EvalTask]:
    if isinstance(data, str) and len(tasks) != 1:
        raise DataError(f"rows from {data} were given for {len(tasks)} tasks ({', '.join(tasks)}); expected one task")
    files = data if isinstance(data, Mapping) else dict.fromkeys(tasks, data)
    loaded = [load_task(task, path=files.get(task), prompt=prompt) for task in tasks]
    if len({task.name for task in loaded}) < len(loaded):
        raise RecipeError(f"two of the tasks {', '.join(tasks)} have one name; evaluate them one after the other")
    return loaded


def _sit(sittings: Sequence[Sitting], examinee: Examinee, progress: Progress) -> dict[str, EvalResult | None]:
    """All that can be refused is refused before the first answer."""
    with ExitStack() as stores:
        for sitting in sittings:
            stores.callback(sitting.store.close)
            if sitting.batches:
                sitting.store.open()
                examinee.refuse(sitting.questions)
        return {each.protocol.task: each.run(examinee, progress) for each in sittings}
