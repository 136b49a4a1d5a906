"""Sudoku of any square size: the share of empty cells that an answer fills correctly."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from dllm_rl.errors import DataError
from dllm_rl.scoring.answers import final_answer
from dllm_rl.scoring.characters import plain_characters
from dllm_rl.scoring.result import EMPTY_ANSWER, NO_ANSWER, Score

_SEPARATORS = re.compile(
    r"\\hline|\\(?:begin|end)\{[a-z]*(?:matrix|array)\}(?:\{[clr| ]*\})?|[\s|,;\-+=\[\](){}$&\\*'`/\u2500-\u257f]"
)


def score_sudoku(completion: str, row: Mapping[str, Any]) -> Score:
    """The share of empty cells that agree with the solution; 1 for any valid completed grid that keeps the givens.

    Cells are read in order; separators, brackets and line breaks between them do not count. Cells that an answer does
    not reach are not right. An answer with more cells than the grid, or with anything but cells, scores 0. Givens are
    not counted, so a grid that changes one can score 1: `is_solved` is stricter.
    """
    puzzle, solution = _read_row(row)
    answer = final_answer(completion)
    if not answer:
        return NO_ANSWER if answer is None else EMPTY_ANSWER
    cells = _cells(answer)
    if len(cells) > len(puzzle) or not (cells.isascii() and cells.isdigit()):
        return Score.wrong(answer, f"expected {len(puzzle)} digits, found {len(cells)} symbols: {cells[:100]!r}")
    if is_completion(puzzle, cells):
        return Score.right(answer, "a valid completed grid that keeps the givens")
    empty = [i for i, given in enumerate(puzzle) if given == "0"]
    right = sum(cells[i : i + 1] == solution[i] for i in empty)
    return Score(right / len(empty), answer, f"{right} of {len(empty)} empty cells are right")


def is_solved(completion: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer is a valid completed grid that keeps the givens of the row's puzzle."""
    puzzle, _ = _read_row(row)
    return is_completion(puzzle, _cells(final_answer(completion) or ""))


def _cells(answer: str) -> str:
    return _SEPARATORS.sub("", plain_characters(answer).rstrip(". ")).replace(".", "0").replace("_", "0")


def is_completion(puzzle: str, grid: str) -> bool:
    """Whether `grid` is a valid full grid that agrees with every given of `puzzle` (digits, 0 for empty)."""
    if len(grid) != len(puzzle) or any(given not in ("0", cell) for given, cell in zip(puzzle, grid, strict=True)):
        return False
    size = math.isqrt(len(grid))
    box = math.isqrt(size)
    symbols = {str(digit) for digit in range(1, size + 1)}
    rows = [set(grid[i * size : (i + 1) * size]) for i in range(size)]
    columns = [set(grid[i::size]) for i in range(size)]
    boxes = [
        {grid[(top + i) * size + left + j] for i in range(box) for j in range(box)}
        for top in range(0, size, box)
        for left in range(0, size, box)
    ]
    return all(group == symbols for group in (*rows, *columns, *boxes))


def _read_row(row: Mapping[str, Any]) -> tuple[str, str]:
    """Puzzle and solution as digit strings, 0 for empty."""
    names = ("puzzle", "solution") if "puzzle" in row else ("Puzzle", "Solution")
    puzzle, solution = (row.get(name) for name in names)
    if not isinstance(puzzle, str) or not isinstance(solution, str):
        raise DataError(
            f"sudoku row {dict(row)!r}: expected puzzle and solution (or Puzzle and Solution) as strings of digits; "
            "read the columns as text, or leading zeros are lost"
        )
    puzzle, solution = (re.sub(r"\s", "", text).replace(".", "0") for text in (puzzle, solution))
    size = math.isqrt(len(puzzle))
    whole = 4 <= len(puzzle) <= 81 and size * size == len(puzzle) and math.isqrt(size) ** 2 == size
    if not whole or len(solution) != len(puzzle) or not (puzzle + solution).isdigit() or "0" not in puzzle:
        raise DataError(
            f"sudoku row {dict(row)!r}: expected a square grid of 16 or 81 digits with at least one empty cell, "
            "and a solution of the same length"
        )
    return puzzle, solution
