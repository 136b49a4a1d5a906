"""A model on disk answers tasks: `dllm-rl eval`. Shared among processes, kept as it goes, taken up again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dllm_rl.errors import DataError, RecipeError
from dllm_rl.evaluation.answer import answer
from dllm_rl.evaluation.metrics import EvalResult, Record
from dllm_rl.evaluation.protocol import EvalProtocol, protocol_of
from dllm_rl.evaluation.revision import revision_of
from dllm_rl.evaluation.store import MemoryStore, RecordStore
from dllm_rl.evaluation.task import Questions, load_task, questions_of, variant_of
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.load import load_model
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.text import encode_prompt, tokenizer_of
from dllm_rl.samplers.canvas import refuse_overlong


@dataclass(frozen=True, slots=True)
class Shard:
    """The share of the work that this process does."""

    rank: int = 0
    world: int = 1


class Progress:
    """Looks on; this one does nothing."""

    def start(self, protocol: EvalProtocol, todo: int, done: Sequence[Record]) -> None:
        """A task begins, of which `todo` answers are to be given here."""

    def add(self, records: Sequence[Record]) -> None:
        """A batch has been answered and kept."""

    def end(self) -> None:
        """No more answers of this task are to be given here."""


@dataclass
class Examinee:
    """A model that is loaded when the first answer is wanted."""

    path: str
    settings: RolloutSettings
    dtype: str = "auto"
    device: str = "cpu"
    revision: str | None = None

    @cached_property
    def model(self) -> DiffusionModel:
        return load_model(self.path, dtype=self.dtype, device=self.device, revision=self.revision)

    @cached_property
    def engine(self) -> LocalEngine:
        return LocalEngine(self.model, self.settings)

    def refuse(self, questions: Questions) -> None:
        """Before the first answer, not after hours: prompts that cannot be encoded or leave no room."""
        tokenizer = tokenizer_of(self.model)
        prompts = [encode_prompt(tokenizer, prompt) for prompt in questions.prompts]
        refuse_overlong(self.model, prompts, self.settings.gen_length)


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
    if isinstance(data, str) and len(tasks) != 1:
        raise DataError(f"rows from {data} were given for {len(tasks)} tasks ({', '.join(tasks)}); expected one task")
    if out is None and shard is not None and shard.world > 1:
        raise RecipeError(f"{shard.world} processes share their answers by files; give a folder (--out)")
    for name, value in (("samples", samples), ("batch size", batch_size)):
        if value < 1:
            raise RecipeError(f"{name} is {value}; expected at least 1")
    files = data if isinstance(data, Mapping) else dict.fromkeys(tasks, data)
    loaded = [load_task(task, path=files.get(task), prompt=prompt) for task in tasks]
    weights = revision_of(path, revision)
    sittings: list[Sitting] = []
    for task in loaded:
        questions = questions_of(task, limit)
        protocol = protocol_of(
            task=questions.task.name,
            task_version=questions.task.version,
            prompt=variant_of(questions.task),
            examples=questions.examples,
            samples=samples,
            model=path,
            revision=weights,
            dtype=dtype,
            settings=settings,
            seed=seed,
        )
        if protocol.task in {each.protocol.task for each in sittings}:
            raise RecipeError(f"two of the tasks are called {protocol.task}; evaluate them one after the other")
        sittings.append(Sitting(questions, protocol, batch_size, shard or Shard(), out))
    examinee = Examinee(path, settings, dtype, device, revision)
    found = _sit(sittings, examinee, progress or Progress())
    return {task: result for task, result in found.items() if result is not None}


def _sit(sittings: Sequence[Sitting], examinee: Examinee, progress: Progress) -> dict[str, EvalResult | None]:
    """All that can be refused is refused before the first answer."""
    with ExitStack() as stores:
        for sitting in sittings:
            stores.callback(sitting.store.close)
            if sitting.batches:
                sitting.store.open()
                examinee.refuse(sitting.questions)
        return {each.protocol.task: each.run(examinee, progress) for each in sittings}


def file_of(out: str | Path, task: str) -> Path:
    """Where the records of a task go."""
    path = Path(out)
    return path if path.suffix == ".jsonl" else path / f"{task}.jsonl"


class Sitting:
    """One task for one model, as far as this process has to do with it.

    Raises:
        RecipeError: see `RecordStore`.
    """

    def __init__(
        self, questions: Questions, protocol: EvalProtocol, batch_size: int, shard: Shard, out: str | Path | None
    ) -> None:
        self.questions, self.protocol = questions, protocol
        items = [(index, sample) for sample in range(protocol.samples) for index in range(len(questions))]
        self.store = (
            MemoryStore(protocol)
            if out is None
            else RecordStore(file_of(out, questions.task.name), protocol, items, shard.rank)
        )
        self.done = self.store.done()
        batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        mine = batches[shard.rank :: shard.world]  # which answers are a batch does not depend on the world
        self.batches = [] if self.store.result() else [each for each in mine if not self.done.keys() >= set(each)]

    def run(self, examinee: Examinee, progress: Progress) -> EvalResult | None:
        """Give the answers that are missing; the result, once no process has any left to give."""
        progress.start(self.protocol, sum(map(len, self.batches)), list(self.done.values()))
        try:
            for batch in self.batches:
                records = answer(examinee.engine, examinee.model, self.questions, batch, self.protocol.seed)
                self.store.append(records)
                progress.add(records)
        finally:
            progress.end()
            self.store.close()
        return self.store.finish()
