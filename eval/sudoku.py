"""4x4 Sudoku, zero-shot: the share of empty cells that are right. Columns: puzzle, solution, or Puzzle, Solution."""

from dllm_rl import score
from dllm_rl.errors import DataError
from dllm_rl.rollouts.rows import read_rows

DEFAULT = """\
Solve this 4x4 Sudoku. It is given row by row as 16 digits, with 0 for an empty cell. Fill the empty cells \
so that every row, every column and every 2x2 box holds each of 1, 2, 3 and 4 once.

{puzzle}

Think step by step between <reasoning> and </reasoning>. Then give the 16 digits of the solution, and nothing else, \
between <answer> and </answer>."""

D1 = """
Please solve the following 4x4 Sudoku puzzle. The puzzle is provided as a 16-character string reading left-to-right, \
top-to-bottom, where '0' represents empty cells.

Rules:
- Fill empty cells with digits 1-4
- Each row must contain digits 1-4 exactly once
- Each column must contain digits 1-4 exactly once
- Each 2x2 box must contain digits 1-4 exactly once

Important: Your solution must be a COMPLETE 16-character string with only the digits 1-4, representing your final \
solved grid.

Respond in this exact format:
<reasoning>
Your step-by-step solving process
</reasoning>
<answer>
[16-character solution string with no spaces or separators]
</answer>


Solve the following Sudoku puzzle: {puzzle}
"""

PROMPTS = {
    "default": [("user", DEFAULT)],
    # Zhao et al., https://arxiv.org/abs/2504.12216, released evaluation code; the answer begins with the tag.
    "d1": [("user", D1), ("assistant", "<reasoning>\n")],
}


class Task:
    """Puzzles of a local file."""

    name = "sudoku"
    version = 2

    def __init__(self, data=None, variant="default"):
        self.data, self.variant = data, variant

    def examples(self):
        if self.data is None:
            raise DataError("task sudoku: give a local file of puzzles and solutions (eval.path)")
        return read_rows(self.data)

    def prompt(self, example):
        puzzle = example["puzzle"] if "puzzle" in example else example["Puzzle"]
        return [{"role": role, "content": text.format(puzzle=puzzle)} for role, text in PROMPTS[self.variant]]

    def score(self, example, completion):
        return score("sudoku", completion, example)
