"""Rewards for MATH. Column: answer."""

from dllm_rl import evaluate
from dllm_rl.scoring.answers import last_box, last_tag, text_of


def correctness(completions, answer, **columns):
    """1 when the answer equals the gold one as mathematics, else 0."""
    rows = [{"answer": gold} for gold in answer]
    return list(evaluate("math500", [text_of(completion) for completion in completions], rows).scores)


def layout(completions, **columns):
    """How well the answer is marked: box in tag 1, tag alone 0.75, box alone 0.5, neither 0.25.

    Source: Zhao et al. (d1), https://arxiv.org/abs/2504.12216; their released code never sees the box.
    """
    return [_layout(text_of(completion)) for completion in completions]


def _layout(text):
    tag = last_tag(text)
    if tag is not None:
        return 1.0 if last_box(tag) is not None else 0.75
    return 0.5 if last_box(text) is not None else 0.25
