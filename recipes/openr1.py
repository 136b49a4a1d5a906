"""Rows of OpenR1-Math as prompts and completions."""

from __future__ import annotations

from typing import Any


def solution_and_answer(row: dict[str, Any]) -> dict[str, str]:
    """A problem, and as its completion the written solution and the answer between d1's tags, the answer in a box."""
    completion = f"<reasoning>\n{row['solution']}\n</reasoning>\n<answer>\n\\boxed{{{row['answer']}}}\n</answer>"
    return {"question": row["problem"], "completion": completion}
