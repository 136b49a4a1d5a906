"""Rewards for the layout <reasoning>...</reasoning><answer>...</answer>, whatever the answer is."""

from dllm_rl.scoring import format as layout
from dllm_rl.scoring.answers import text_of


def soft(completions, **columns):
    """1 for reasoning, then an answer, each once, with any white space."""
    return [float(layout.is_soft(text_of(completion))) for completion in completions]


def strict(completions, **columns):
    """1 for exactly the layout: every tag once, on a line of its own, nothing around."""
    return [float(layout.is_strict(text_of(completion))) for completion in completions]


def tags(completions, **columns):
    """A quarter for each tag that is there once, on a line of its own; text after the answer costs."""
    return [layout.tag_credit(text_of(completion)) for completion in completions]
