"""Sudoku of four rows, made on demand: endless, exactly reproducible, its held-out solutions never seen in training."""

from __future__ import annotations

from functools import cache
from itertools import count as naturals
from itertools import permutations

from dllm_rl.errors import DataError
from dllm_rl.toys.draws import check_rows, happens, number_of

_SIZE, _CELLS, _DIGITS = 4, 16, "1234"
_HELD_OUT = 28  # of the 288 solutions


def rows(
    split: str, *, seed: int = 0, start: int = 0, count: int = 1000, empty: int = 6, careless: float = 0.0
) -> list[dict[str, str]]:
    """Rows `start` to `start + count - 1` of an endless list of puzzles, each with exactly one solution.

    A row is `{"prompt": "1030...=", "puzzle": "1030...", "solution": "1234...", "completion": "1234..."}`: 16 digits
    row by row, 0 for an empty cell.

    The 288 solutions are divided once and for all, whatever the seed: 28 of them are "test", so no held-out puzzle has
    a solution that was seen in training. Puzzles of a side are drawn with replacement.

    Args:
        split: "train" or "test".
        seed: which puzzles are drawn, and in which order.
        start: index of the first row, from 0. A row depends on its index, not on where a call started.
        count: how many rows.
        empty: cells to fill, from 1 to 12 (fewer than four givens never leave a single solution).
        careless: share of demonstrations (`completion`) that look at rows alone: each empty cell gets the smallest
            digit that its row still lacks. `solution` stays right. Which rows these are cannot be told from the prompt.

    Raises:
        DataError: an unknown split, or a number out of range.
    """
    check_rows(split, start, count, careless)
    if not 1 <= empty <= 12:
        raise DataError(f"empty is {empty}; expected 1 to 12 cells to fill")
    return [_row(split, seed, index, empty, careless) for index in range(start, start + count)]


def _row(split: str, seed: int, index: int, empty: int, careless: float) -> dict[str, str]:
    solution, puzzle = next(
        drawn
        for attempt in naturals()
        if _has_one_solution((drawn := _draw(split, f"{split} {seed} {index} {attempt}", empty))[1])
    )
    slips = happens(careless, f"careless small sudoku {split} {seed} {index}")
    demonstration = _by_rows(puzzle) if slips else solution
    return {"prompt": f"{puzzle}=", "puzzle": puzzle, "solution": solution, "completion": demonstration}


def _draw(split: str, key: str, empty: int) -> tuple[str, str]:
    side = _solutions()[:_HELD_OUT] if split == "test" else _solutions()[_HELD_OUT:]
    solution = side[number_of(f"small sudoku {key}") % len(side)]
    hidden = sorted(range(_CELLS), key=lambda cell: number_of(f"small sudoku {key} {cell}"))[:empty]
    return solution, "".join("0" if cell in hidden else digit for cell, digit in enumerate(solution))


@cache
def _solutions() -> list[str]:
    """All valid grids, in an order that has nothing to do with what they hold."""
    grids: list[tuple[str, ...]] = [()]
    for _ in range(_SIZE):
        grids = [(*grid, "".join(line)) for grid in grids for line in permutations(_DIGITS)]
        grids = [grid for grid in grids if _repeats_nothing(grid)]
    return sorted(map("".join, grids), key=lambda grid: number_of(f"split small sudoku {grid}"))


def _repeats_nothing(lines: tuple[str, ...]) -> bool:
    """Whether the first rows of a grid, each of four different digits, have no digit twice in a column or a box."""
    pairs = zip(lines[::2], lines[1::2], strict=False)
    boxes = (upper[left : left + 2] + lower[left : left + 2] for upper, lower in pairs for left in (0, 2))
    return all(len(set(group)) == len(group) for group in (*zip(*lines, strict=True), *boxes))


def _has_one_solution(puzzle: str) -> bool:
    givens, mask = _packed(puzzle), _packed("".join("7" if digit != "0" else "0" for digit in puzzle))
    return sum((grid & mask) == givens for grid in _packed_solutions()) == 1


@cache
def _packed_solutions() -> list[int]:
    return [_packed(grid) for grid in _solutions()]


def _packed(digits: str) -> int:
    """Four bits a cell, so that one operation compares all."""
    return int(digits, 16)


def _by_rows(puzzle: str) -> str:
    """Every row completed with the digits that it lacks, the smallest first; columns and boxes are not looked at."""
    lines = (puzzle[start : start + _SIZE] for start in range(0, _CELLS, _SIZE))
    return "".join(_complete(line) for line in lines)


def _complete(line: str) -> str:
    missing = iter(digit for digit in _DIGITS if digit not in line)
    return "".join(next(missing) if digit == "0" else digit for digit in line)
