"""4x4 Sudoku, zero-shot: the share of empty cells that are right. Columns: puzzle, solution, or Puzzle, Solution."""

from dllm_rl import score
from dllm_rl.errors import DataError
from dllm_rl.rollouts.rows import read_rows

PROMPT = """\
Solve this 4x4 Sudoku. It is given row by row as 16 digits, with 0 for an empty cell. Fill the empty cells \
so that every row, every column and every 2x2 box holds each of 1, 2, 3 and 4 once.

{puzzle}

Think step by step between <reasoning> and </reasoning>. Then give the 16 digits of the solution, and nothing else, \
between <answer> and </answer>."""


class Task:
    """Puzzles of a local file."""

    name = "sudoku"
    version = 1

    def __init__(self, data=None):
        self.data = data

    def examples(self):
        if self.data is None:
            raise DataError("task sudoku: give a local file of puzzles and solutions (eval.path)")
        return read_rows(self.data)

    def prompt(self, example):
        puzzle = example["puzzle"] if "puzzle" in example else example["Puzzle"]
        return [{"role": "user", "content": PROMPT.format(puzzle=puzzle)}]

    def score(self, example, completion):
        return score("sudoku", completion, example)
