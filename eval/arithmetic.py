"""Toy arithmetic, continued as plain text. Columns: question or prompt, answer; without local rows, generated."""

from dllm_rl import score
from dllm_rl.rollouts.rows import read_rows
from dllm_rl.toys import arithmetic


class Task:
    """Held-out sums of the quickstart."""

    name = "arithmetic"
    version = 1

    def __init__(self, data=None):
        self.data = data

    def examples(self):
        return read_rows(self.data) if self.data is not None else arithmetic.rows("test")

    def prompt(self, example):
        return example["question"] if "question" in example else example["prompt"]

    def score(self, example, completion):
        return score("arithmetic", completion, example)
