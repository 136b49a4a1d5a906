"""Reward for sums with a written trace. Column: answer."""

from dllm_rl import score
from dllm_rl.scoring.answers import text_of
from dllm_rl.toys.column_sum import MARKER


def correctness(completions, answer, **columns):
    """1 when what follows the marker is the answer, else 0; the trace is not judged."""
    return [
        score("arithmetic", text_of(completion).partition(MARKER)[2], {"answer": gold}).value
        for completion, gold in zip(completions, answer, strict=True)
    ]
