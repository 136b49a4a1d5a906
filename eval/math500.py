"""MATH-500 (Lightman et al., https://arxiv.org/abs/2305.20050), zero-shot. Columns: problem, answer."""

from dllm_rl import score
from dllm_rl.rollouts.rows import read_rows

PROMPT = """{problem}

Think step by step between <reasoning> and </reasoning>. Then give the final answer as \\boxed{{...}} between \
<answer> and </answer>."""


class Task:
    """The 500 problems."""

    name = "math500"
    version = 1

    def __init__(self, data=None):
        self.data = data

    def examples(self):
        return read_rows(self.data or "HuggingFaceH4/MATH-500", split="test")

    def prompt(self, example):
        return [{"role": "user", "content": PROMPT.format(problem=example["problem"])}]

    def score(self, example, completion):
        return score("math500", completion, example)
