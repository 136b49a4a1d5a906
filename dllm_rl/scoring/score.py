"""Scoring by the name of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dllm_rl.errors import DataError, RecipeError
from dllm_rl.scoring.arithmetic import score_arithmetic
from dllm_rl.scoring.code import score_humaneval, score_mbpp
from dllm_rl.scoring.countdown import score_countdown
from dllm_rl.scoring.math import score_math, score_number
from dllm_rl.scoring.pool import POOL_SIZE
from dllm_rl.scoring.result import Score
from dllm_rl.scoring.sudoku import score_sudoku

TASKS: Mapping[str, Callable[[str, Mapping[str, Any]], Score]] = {
    "gsm8k": score_number,
    "math500": score_math,
    "countdown": score_countdown,
    "sudoku": score_sudoku,
    "arithmetic": score_arithmetic,
}
CODE_TASKS: Mapping[str, Callable[..., Score]] = {"humaneval": score_humaneval, "mbpp": score_mbpp}
"""Tasks that run the completion, in a sandbox: docs/code.md."""


def score(task: str, completion: str, row: Mapping[str, Any], *, allow_unsandboxed: bool = False) -> Score:
    """How right one completion is. Reads no file and runs no model; code tasks run the completion in a sandbox.

    Args:
        task: gsm8k, math500, countdown, sudoku, arithmetic, humaneval or mbpp.
        completion: text of the model's turn.
        row: the example. gsm8k and arithmetic: question, answer; math500: problem, answer; countdown: numbers,
            target or input, output; sudoku: puzzle, solution or Puzzle, Solution. Only the gold answer is read.
            humaneval: prompt, entry_point, test; mbpp: test_list, and what `score_mbpp` lists.
        allow_unsandboxed: let code tasks run on a host that offers no isolation, with the rights of this user.
            Elsewhere it changes nothing.

    Raises:
        RecipeError: the task is unknown.
        DataError: the row does not hold what the task needs, or the completion is not text.
        SandboxError: the task runs code, and the host offers no isolation.
    """
    if task not in TASKS and task not in CODE_TASKS:
        raise RecipeError(f"unknown task {task!r}. Tasks: {', '.join([*TASKS, *CODE_TASKS])}.")
    if not isinstance(completion, str):
        raise DataError(f"task {task!r}: a completion is {type(completion).__name__}, expected text")
    if task in CODE_TASKS:
        return CODE_TASKS[task](completion, row, allow_unsandboxed=allow_unsandboxed)
    return TASKS[task](completion, row)


def score_all(
    task: str, completions: Sequence[str], rows: Sequence[Mapping[str, Any]], *, allow_unsandboxed: bool = False
) -> list[Score]:
    """`score` for every pair, in order; what needs a process of its own runs in parallel.

    Raises:
        DataError: not as many rows as completions.
    """
    if len(completions) != len(rows):
        raise DataError(f"task {task!r}: {len(completions)} completions for {len(rows)} rows, expected one each")

    def one(completion: str, row: Mapping[str, Any]) -> Score:
        return score(task, completion, row, allow_unsandboxed=allow_unsandboxed)

    with ThreadPoolExecutor(max_workers=POOL_SIZE, thread_name_prefix="score") as threads:
        return list(threads.map(one, completions, rows))
