"""What an evaluation task is, and where tasks come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dllm_rl.errors import RecipeError
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
        """Chat messages, or plain text to continue."""
        ...

    def score(self, example: Example, completion: str) -> Score: ...


def load_task(reference: str, base: Path | None = None, *, path: str | None = None) -> EvalTask:
    """The task in a file: an instance of its class `Task`.

    Args:
        reference: a file (`eval/gsm8k.py`), or the bare name of one in eval/ (`gsm8k`).
        base: folder of the recipe that names the task; see `shipped.locate`.
        path: local file with the rows; None: the task's own source, often a hub data set.

    Raises:
        RecipeError: there is no such file, or it holds no class `Task`.
    """
    bare = "/" not in reference and not reference.endswith(".py")
    try:
        file = locate(f"eval/{reference}.py" if bare else reference, base)
    except RecipeError as error:
        if not bare:
            raise
        names = ", ".join(sorted(shipped.stem for shipped in (shipped_root() / "eval").glob("*.py")))
        raise RecipeError(f"unknown task {reference!r}. Shipped tasks: {names}; or give a file") from error
    task = getattr(import_file(file), "Task", None)
    if task is None:
        raise RecipeError(f"{file}: no class Task; expected one with name, version, examples, prompt and score")
    loaded: EvalTask = task(path)
    return loaded
