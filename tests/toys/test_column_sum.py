from __future__ import annotations

import pytest

from dllm_rl.errors import DataError
from dllm_rl.toys import arithmetic
from dllm_rl.toys.column_sum import rows


def columns(row: dict[str, str]) -> list[tuple[int, int]]:
    """Digits above one another, units first."""
    left, right = row["prompt"].rstrip("=").split("+")
    return [(int(a), int(b)) for a, b in zip(left[::-1], right[::-1], strict=True)]


@pytest.mark.parametrize("digits", [1, 3, 6])
def test_the_trace_is_schoolbook_addition_and_leads_to_the_answer(digits: int) -> None:
    for row in rows("train", seed=3, start=5, count=60, digits=digits):
        carry, written = 0, []
        for a, b in columns(row):
            written.append(f"{a + b + carry:02}")
            carry = int(written[-1][0])
        assert row["answer"] == str(carry) + "".join(total[1] for total in reversed(written))
        assert row["trace"] == f"{','.join(written)}#{row['answer']}"
        left, right = row["prompt"].rstrip("=").split("+")
        assert int(row["answer"]) == int(left) + int(right)
        assert row["completion"] == row["trace"]
        assert len(row["completion"]) == 4 * digits + 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_problems_and_splits_are_those_of_plain_arithmetic(split: str) -> None:
    plain = arithmetic.rows(split, seed=4, start=7, count=50, digits=2)
    traced = rows(split, seed=4, start=7, count=50, digits=2, careless=0.5)
    for name in ("prompt", "answer"):
        assert [row[name] for row in traced] == [row[name] for row in plain]


def test_careless_demonstrations_forget_every_carry_and_nothing_else() -> None:
    listed = rows("train", count=400, careless=0.6)
    careful = rows("train", count=400)
    for name in ("prompt", "answer", "trace"):
        assert [row[name] for row in listed] == [row[name] for row in careful]
    slipped = [row for row, right in zip(listed, careful, strict=True) if row["completion"] != right["completion"]]
    for row in slipped:
        written = [f"{a + b:02}" for a, b in columns(row)]
        answer = "0" + "".join(total[1] for total in reversed(written))
        assert row["completion"] == f"{','.join(written)}#{answer}"
    # 0.6 of all rows slip, and 0.84 of all three-digit sums carry somewhere: 201 expected, standard deviation 10.
    assert 171 <= len(slipped) <= 231


def test_a_row_depends_on_its_index_alone() -> None:
    whole = rows("train", seed=7, start=0, count=30, careless=0.5)
    assert rows("train", seed=7, start=11, count=4, careless=0.5) == whole[11:15]


def test_the_list_is_the_same_for_ever() -> None:
    (row,) = rows("test", count=1)
    assert row == {"prompt": "601+042=", "answer": "0643", "trace": "03,04,06#0643", "completion": "03,04,06#0643"}
    slips = [row["completion"].split("#")[1] != row["answer"] for row in rows("train", count=8, careless=0.5)]
    assert slips == [True, True, True, True, False, False, True, False]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split": "valid"}, "'valid'"),
        ({"start": -1}, "start is -1"),
        ({"count": -1}, "count is -1"),
        ({"digits": 7}, "digits is 7"),
        ({"careless": 1.5}, "careless is 1.5"),
    ],
)
def test_refuses_what_it_cannot_make(changed: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(**{"split": "train", "count": 1, **changed})  # type: ignore[arg-type]
