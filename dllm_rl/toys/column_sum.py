"""Sums with a written trace: every column with the carry it got, units first, then the answer after a marker."""

from __future__ import annotations

from dllm_rl.toys import arithmetic
from dllm_rl.toys.draws import check_rows, happens

MARKER = "#"
"""Stands before the answer, and nowhere else."""


def rows(
    split: str, *, seed: int = 0, start: int = 0, count: int = 1000, digits: int = 3, careless: float = 0.0
) -> list[dict[str, str]]:
    """Rows `start` to `start + count - 1` of an endless list of sums.

    A row is `{"prompt": "347+285=", "answer": "0632", "trace": "12,13,06#0632", "completion": "12,13,06#0632"}`:
    7 + 5 is 12, 4 + 8 and the carry are 13, 3 + 2 and the carry are 06. Prompts and answers, hence the two splits, are
    those of `arithmetic.rows`.

    Every prompt of a given `digits` has one length, and so has every completion: 4 * digits + 1 characters.

    Wrong to use as a test of length generalisation: both splits hold operands of the same length.

    Args:
        split: "train" or "test".
        seed: the order of the rows and of the two operands in each; never the division into splits.
        start: index of the first row, from 0. A row depends on its index, not on where a call started.
        count: how many rows.
        digits: digits per operand, from 1 to 6.
        careless: share of demonstrations (`completion`) that forget every carry, "12,12,05#0522" above; `trace` and
            `answer` stay right. Which rows these are cannot be told from the prompt.

    Raises:
        DataError: an unknown split, or a number out of range.
    """
    check_rows(split, start, count, careless)
    sums = arithmetic.rows(split, seed=seed, start=start, count=count, digits=digits)
    return [
        _with_trace(row, happens(careless, f"careless column sum {split} {seed} {start + place}"))
        for place, row in enumerate(sums)
    ]


def _with_trace(row: dict[str, str], slips: bool) -> dict[str, str]:
    left, right = row["prompt"].rstrip("=").split("+")
    columns = [int(a) + int(b) for a, b in zip(reversed(left), reversed(right), strict=True)]
    return {**row, "trace": _written(columns, carries=True), "completion": _written(columns, carries=not slips)}


def _written(columns: list[int], *, carries: bool) -> str:
    """What somebody writes who carries, or who forgets to."""
    carry, totals = 0, []
    for column in columns:
        totals.append(column + carry)
        carry = totals[-1] // 10 if carries else 0
    answer = str(carry) + "".join(str(total % 10) for total in reversed(totals))
    return ",".join(f"{total:02}" for total in totals) + MARKER + answer
