"""Reward for toy arithmetic. Column: answer."""

from dllm_rl import score
from dllm_rl.scoring.answers import text_of


def correctness(completions, answer, **columns):
    """1 when the last integer of the completion is the answer, else 0."""
    return [
        score("arithmetic", text_of(completion), {"answer": gold}).value
        for completion, gold in zip(completions, answer, strict=True)
    ]
