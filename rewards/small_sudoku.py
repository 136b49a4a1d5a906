"""Reward for Sudoku of four rows, answered in plain digits. Column: puzzle."""

from dllm_rl.scoring.answers import text_of
from dllm_rl.scoring.sudoku import is_completion


def correctness(completions, puzzle, **columns):
    """1 for a valid completed grid that keeps the givens, else 0."""
    return [
        float(is_completion(givens, text_of(completion)))
        for completion, givens in zip(completions, puzzle, strict=True)
    ]
