"""Rewards for GSM8K and other word problems with one number as answer. Column: answer.

d1 (https://arxiv.org/abs/2504.12216) adds up correctness and integer of this file and soft, strict and tags of
format.py, with weights 2, 0.5, 0.5, 0.5 and 0.5.
"""

from dllm_rl import score
from dllm_rl.scoring.answers import last_tag, text_of


def correctness(completions, answer, **columns):
    """1 when the answer is the number after #### (or all of the column), else 0."""
    return [
        score("gsm8k", text_of(completion), {"answer": gold}).value
        for completion, gold in zip(completions, answer, strict=True)
    ]


def integer(completions, **columns):
    """1 when the answer tag holds nothing but digits, else 0."""
    tags = [last_tag(text_of(completion)) for completion in completions]
    return [float(tag is not None and tag.isascii() and tag.isdigit()) for tag in tags]
