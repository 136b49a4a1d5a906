"""One task for one model: which answers are this process's to give, which are there already, and giving the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dllm_rl.evaluation.answer import answer
from dllm_rl.evaluation.metrics import EvalResult, Record
from dllm_rl.evaluation.protocol import EvalProtocol
from dllm_rl.evaluation.store import MemoryStore, RecordStore
from dllm_rl.evaluation.task import Questions
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


def file_of(out: str | Path, task: str) -> Path:
    """Where the records of a task go."""
    path = Path(out)
    return path if path.suffix == ".jsonl" else path / f"{task}.jsonl"
