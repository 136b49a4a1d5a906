"""Toy arithmetic: the last integer of the completion is its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dllm_rl.errors import DataError
from dllm_rl.scoring.result import NO_ANSWER, Score

_INTEGER = re.compile(r"-?\d+")


def score_arithmetic(completion: str, row: Mapping[str, Any]) -> Score:
    """1 when the last integer in the completion is the row's `answer`, else 0."""
    gold = str(row.get("answer", "")).strip()
    if not _INTEGER.fullmatch(gold):
        raise DataError(f"arithmetic row {dict(row)!r}: expected a column answer with an integer")
    found = _INTEGER.findall(completion)
    if not found:
        return NO_ANSWER
    answer = found[-1]
    right = (answer.lstrip("-").lstrip("0"), answer[0] == "-") == (gold.lstrip("-").lstrip("0"), gold[0] == "-")
    return Score.right(answer, f"equal to {gold}") if right else Score.wrong(answer, f"expected {gold}")
