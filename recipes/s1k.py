"""Rows of the s1K data set as prompts and completions."""

from __future__ import annotations

from typing import Any


def reasoning_then_answer(row: dict[str, Any]) -> dict[str, str]:
    """A question, and as its completion the reasoning and the answer between d1's tags.

    Source: https://arxiv.org/abs/2504.12216, the released preparation of s1K.
    """
    reasoning, answer = row["thinking_trajectories"][0], row["attempt"]
    completion = f"<reasoning>{reasoning}</reasoning>\n<answer>{answer}</answer>"
    return {"question": row["question"], "completion": completion}
