"""Rewards for Countdown. Columns: numbers and target, or input and output."""

from dllm_rl import score
from dllm_rl.scoring.answers import final_answer, text_of
from dllm_rl.scoring.countdown import read_expression, read_row
from dllm_rl.scoring.expression import ExpressionError

NAMES = ("numbers", "target", "input", "output")


def correctness(completions, **columns):
    """1 for the target reached with every number once, else 0."""
    return [
        score("countdown", text_of(completion), row).value
        for completion, row in zip(completions, _rows(completions, columns), strict=True)
    ]


def graded(completions, **columns):
    """1 for the target reached with every number once, 0.1 for the right numbers and another value, else 0.

    Source: Zhao et al. (d1), https://arxiv.org/abs/2504.12216, as in the paper; their code gives 0.1 to any expression.
    """
    return [
        _graded(text_of(completion), row)
        for completion, row in zip(completions, _rows(completions, columns), strict=True)
    ]


def _graded(text, row):
    numbers, target = read_row(row)
    try:
        found = read_expression(final_answer(text) or "")
    except ExpressionError:
        return 0.0
    if sorted(found.numbers) != sorted(numbers):
        return 0.0
    return 1.0 if found.value == target else 0.1


def _rows(completions, columns):
    given = [name for name in NAMES if name in columns]
    return [{name: columns[name][place] for name in given} for place in range(len(completions))]
