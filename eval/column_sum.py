"""Sums with a written trace, continued as plain text. Columns: prompt, answer; without local rows, generated."""

from dllm_rl import score
from dllm_rl.rollouts.rows import read_rows
from dllm_rl.toys import column_sum


class Task:
    """Held-out sums; what follows the marker is judged, the trace is not."""

    name = "column_sum"
    version = 1

    def __init__(self, data=None):
        self.data = data

    def examples(self):
        return read_rows(self.data) if self.data is not None else column_sum.rows("test")

    def prompt(self, example):
        return example["prompt"]

    def score(self, example, completion):
        return score("arithmetic", completion.partition(column_sum.MARKER)[2], example)
