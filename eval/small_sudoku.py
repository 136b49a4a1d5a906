"""4x4 Sudoku as plain digits. Columns: prompt, puzzle, solution; without local rows, generated.

Unlike the task sudoku, a grid is right or wrong: 1 for a valid completed grid that keeps the givens, else 0.
"""

from dllm_rl.rollouts.rows import read_rows
from dllm_rl.scoring.result import Score
from dllm_rl.scoring.sudoku import is_completion
from dllm_rl.toys import small_sudoku


class Task:
    """Puzzles whose solutions no training row has."""

    name = "small_sudoku"
    version = 1

    def __init__(self, data=None):
        self.data = data

    def examples(self):
        return read_rows(self.data) if self.data is not None else small_sudoku.rows("test")

    def prompt(self, example):
        return example["prompt"]

    def score(self, example, completion):
        if is_completion(example["puzzle"], completion):
            return Score.right(completion, "a valid completed grid that keeps the givens")
        return Score.wrong(completion, f"expected {example['solution']}")
