"""Rows of MetaMathQA as questions with a reference trace and its answer."""

from __future__ import annotations

from typing import Any

KINDS = ("GSM_AnsAug", "MATH_AnsAug")
ANSWER = "The answer is: "


def question_and_trace(row: dict[str, Any]) -> dict[str, str] | None:
    """A question, the reasoning after the tag that completions begin with, and the answer; None for rows left out.

    Left out are rewritten and inverted questions, and the few responses that name no answer. The sentence that names it
    is cut off the trace; what is left may still hold the answer, which `algorithm.hints` hides.

    Source: Zhao et al., IGPO, https://arxiv.org/abs/2509.10396, and the data preparation of its released code.
    """
    reasoning, found, answer = row["response"].rpartition(ANSWER)
    if row["type"] not in KINDS or not found or not answer.strip() or not reasoning.strip():
        return None
    return {"question": row["query"], "trace": f"<reasoning>\n{reasoning.strip()}", "answer": answer.strip()}
