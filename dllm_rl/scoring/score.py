"""Scoring by the name of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dllm_rl.errors import DataError, RecipeError
from dllm_rl.scoring.arithmetic import score_arithmetic
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
_CODE_TASKS = ("humaneval", "mbpp")


def score(task: str, completion: str, row: Mapping[str, Any], *, allow_unsandboxed: bool = False) -> Score:
    """How right one completion is. Reads no file and runs no model.

    Args:
        task: gsm8k, math500, countdown, sudoku or arithmetic.
        completion: text of the model's turn.
        row: the example. gsm8k and arithmetic: question, answer; math500: problem, answer; countdown: numbers,
            target or input, output; sudoku: puzzle, solution or Puzzle, Solution. Only the gold answer is read.
        allow_unsandboxed: for tasks that run code; no task of this version does.

    Raises:
        RecipeError: the task is unknown, or runs code.
        DataError: the row does not hold what the task needs, or the completion is not text.
    """
    if task in _CODE_TASKS:
        raise RecipeError(f"task {task!r} runs code, which is not part of this version. Tasks: {', '.join(TASKS)}.")
    if task not in TASKS:
        raise RecipeError(f"unknown task {task!r}. Tasks: {', '.join(TASKS)}.")
    if not isinstance(completion, str):
        raise DataError(f"task {task!r}: a completion is {type(completion).__name__}, expected text")
    return TASKS[task](completion, row)


def score_all(task: str, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Score]:
    """`score` for every pair, in order; what needs a worker process runs in parallel.

    Raises:
        DataError: not as many rows as completions.
    """
    if len(completions) != len(rows):
        raise DataError(f"task {task!r}: {len(completions)} completions for {len(rows)} rows, expected one each")
    with ThreadPoolExecutor(max_workers=POOL_SIZE, thread_name_prefix="score") as threads:
        return list(threads.map(lambda completion, row: score(task, completion, row), completions, rows))
