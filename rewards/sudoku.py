"""Rewards for Sudoku. Columns: puzzle and solution, or Puzzle and Solution; digits as text, 0 for empty."""

from dllm_rl import score
from dllm_rl.scoring.answers import text_of
from dllm_rl.scoring.sudoku import is_solved

NAMES = ("puzzle", "solution", "Puzzle", "Solution")


def cells(completions, **columns):
    """The share of empty cells that are right."""
    pairs = zip(completions, _rows(completions, columns), strict=True)
    return [score("sudoku", text_of(completion), row).value for completion, row in pairs]


def solved(completions, **columns):
    """1 for a completed grid that keeps the givens, else 0."""
    pairs = zip(completions, _rows(completions, columns), strict=True)
    return [float(is_solved(text_of(completion), row)) for completion, row in pairs]


def _rows(completions, columns):
    given = [name for name in NAMES if name in columns]
    return [{name: columns[name][place] for name in given} for place in range(len(completions))]
