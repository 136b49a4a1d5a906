"""What an evaluation task is, and where tasks come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dllm_rl.errors import DataError, RecipeError
from dllm_rl.scoring.result import Score
from dllm_rl.shipped import import_file, locate, shipped_root

Example = Mapping[str, Any]
Messages = Sequence[Mapping[str, str]]


class EvalTask(Protocol):
    """Examples, how to ask for an answer, and how to judge one."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int:
        """Raised whenever prompts or scores change: results of different versions do not compare."""
        ...

    def examples(self) -> Sequence[Example]:
        """All examples, in a fixed order."""
        ...

    def prompt(self, example: Example) -> str | Messages:
        """Chat messages, or plain text to continue. An assistant's message at the end is a beginning to continue."""
        ...

    def score(self, example: Example, completion: str) -> Score: ...


@dataclass(frozen=True, slots=True)
class Questions:
    """A task's examples and what is asked about each."""

    task: EvalTask
    examples: Sequence[Example]
    prompts: Sequence[str | Messages]

    def __len__(self) -> int:
        return len(self.examples)


def questions_of(task: EvalTask, limit: int | None = None) -> Questions:
    """All questions of a task, or the first so many.

    Raises:
        DataError: there are none, or an example lacks a column.
    """
    if limit is not None and limit < 1:
        raise DataError(f"task {task.name}: limit is {limit}; expected at least 1, or None for all examples")
    examples = list(task.examples())[:limit]
    if not examples:
        raise DataError(f"task {task.name}: no examples; expected at least one")
    return Questions(task, examples, [_prompt(task, example, place) for place, example in enumerate(examples)])


def _prompt(task: EvalTask, example: Example, place: int) -> str | Messages:
    try:
        return task.prompt(example)
    except KeyError as error:
        raise DataError(
            f"task {task.name}: example {place} has no column {error}; its columns are {', '.join(example)}"
        ) from error


def variant_of(task: EvalTask) -> str:
    """Name of the prompt that a task asks with."""
    return str(getattr(task, "variant", "default"))


def load_task(
    reference: str, base: Path | None = None, *, path: str | None = None, prompt: str | None = None
) -> EvalTask:
    """The task in a file: an instance of its class `Task`.

    Args:
        reference: a file (`eval/gsm8k.py`), or the bare name of one in eval/ (`gsm8k`).
        base: folder of the recipe that names the task; see `shipped.locate`.
        path: local file with the rows; None: the task's own source, often a hub data set.
        prompt: a key of the file's `PROMPTS`; None: the task's own choice, called default.

    Raises:
        RecipeError: there is no such file, it holds no class `Task`, or no such prompt.
    """
    bare = "/" not in reference and not reference.endswith(".py")
    try:
        file = locate(f"eval/{reference}.py" if bare else reference, base)
    except RecipeError as error:
        if not bare:
            raise
        names = ", ".join(sorted(shipped.stem for shipped in (shipped_root() / "eval").glob("*.py")))
        raise RecipeError(f"unknown task {reference!r}. Shipped tasks: {names}; or give a file") from error
    module = import_file(file)
    task = getattr(module, "Task", None)
    if task is None:
        raise RecipeError(f"{file}: no class Task; expected one with name, version, examples, prompt and score")
    variants = getattr(module, "PROMPTS", {})
    if prompt is not None and prompt not in variants:
        raise RecipeError(
            f"{file}: no prompt {prompt!r}; there is {', '.join(variants) or 'one prompt, without a name'}"
        )
    loaded: EvalTask = task(path) if prompt is None else task(path, prompt)
    return loaded
