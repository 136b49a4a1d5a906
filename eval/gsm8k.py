"""GSM8K (Cobbe et al., https://arxiv.org/abs/2110.14168), test set, zero-shot. Columns: question, answer."""

from dllm_rl import score
from dllm_rl.rollouts.rows import read_rows

PROMPT = """{question}

Think step by step between <reasoning> and </reasoning>. Then give the final number, and nothing else, between \
<answer> and </answer>."""


class Task:
    """The test problems."""

    name = "gsm8k"
    version = 1

    def __init__(self, data=None):
        self.data = data

    def examples(self):
        return read_rows(self.data or "openai/gsm8k", name="main", split="test")

    def prompt(self, example):
        return [{"role": "user", "content": PROMPT.format(question=example["question"])}]

    def score(self, example, completion):
        return score("gsm8k", completion, example)
