from __future__ import annotations

import re

import pytest

from dllm_rl.errors import DataError
from dllm_rl.toys.arithmetic import rows, split_size


def operands(row: dict[str, str]) -> tuple[int, int]:
    left, right = row["prompt"].rstrip("=").split("+")
    return int(left), int(right)


def pairs(split: str, *, seed: int = 0, start: int = 0, digits: int = 2) -> list[tuple[int, int]]:
    listed = rows(split, seed=seed, start=start, count=split_size(split, digits), digits=digits)
    return [(min(operands(row)), max(operands(row))) for row in listed]


@pytest.mark.parametrize("digits", [1, 2, 3, 6])
@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_right_and_every_field_has_one_width(split: str, digits: int) -> None:
    for row in rows(split, seed=3, start=5, count=40, digits=digits):
        assert set(row) == {"prompt", "answer", "completion"} and row["completion"] == row["answer"]
        assert re.fullmatch(rf"\d{{{digits}}}\+\d{{{digits}}}=", row["prompt"])
        assert len(row["answer"]) == digits + 1
        assert int(row["answer"]) == sum(operands(row))


@pytest.mark.parametrize("digits", [1, 2])
def test_splits_partition_all_unordered_pairs(digits: int) -> None:
    train, test = pairs("train", digits=digits), pairs("test", digits=digits)
    everything = [(a, b) for b in range(10**digits) for a in range(b + 1)]
    assert sorted(train + test) == sorted(everything)
    assert len(test) == len(everything) // 10


def test_division_does_not_depend_on_the_seed_or_the_pass() -> None:
    assert (
        set(pairs("test", seed=0))
        == set(pairs("test", seed=1))
        == set(pairs("test", seed=1, start=10 * split_size("test", 2)))
    )


def test_order_depends_on_the_seed_and_the_pass() -> None:
    first = pairs("train", seed=0)
    assert first != pairs("train", seed=1)
    assert first != pairs("train", seed=0, start=split_size("train", 2))


def test_a_row_depends_on_its_index_alone() -> None:
    whole = rows("train", seed=7, start=0, count=30)
    assert rows("train", seed=7, start=11, count=4) == whole[11:15]
    assert rows("train", seed=7, start=0, count=30) == whole


def test_operands_are_uniform_and_exchanged_half_of_the_time() -> None:
    listed = [operands(row) for row in rows("test", seed=0, start=0, count=4000)]
    mean = sum(a + b for a, b in listed) / 8000
    assert abs(mean - 499.5) < 5 * 288.7 / 8000**0.5
    assert abs(sum(a > b for a, b in listed) / 4000 - 0.5) < 5 * 0.5 / 4000**0.5


def test_leading_digits_of_both_splits_are_alike() -> None:
    for split in ("train", "test"):
        listed = rows(split, seed=2, start=0, count=3000)
        for digit in "0123456789":
            share = sum(row["prompt"][0] == digit for row in listed) / 3000
            assert abs(share - 0.1) < 5 * 0.3 / 3000**0.5


def test_the_list_is_the_same_for_ever() -> None:
    prompts = [row["prompt"] for row in rows("test", seed=0, start=0, count=3)]
    assert prompts == ["601+042=", "085+175=", "580+799="]


@pytest.mark.parametrize(
    ("split", "start", "count", "digits", "message"),
    [
        ("valid", 0, 1, 3, "'valid'"),
        ("train", -1, 1, 3, "start is -1"),
        ("train", 0, -1, 3, "count is -1"),
        ("train", 0, 1, 0, "digits is 0"),
        ("train", 0, 1, 7, "digits is 7"),
    ],
)
def test_refuses_what_it_cannot_make(split: str, start: int, count: int, digits: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(split, seed=0, start=start, count=count, digits=digits)


def test_careless_demonstrations_add_each_column_by_itself() -> None:
    listed = rows("train", count=400, digits=2, careless=0.6)
    careful = rows("train", count=400, digits=2)
    assert [row["answer"] for row in listed] == [row["answer"] for row in careful]
    slipped = [row for row in listed if row["completion"] != row["answer"]]
    for row in slipped:
        left, right = operands(row)
        columns = [(left // 10 + right // 10) % 10, (left + right) % 10]
        assert row["completion"] == "0" + "".join(map(str, columns))
    # 0.6 of all rows slip, and 0.7 of all two-digit sums carry somewhere: 168 expected, standard deviation 10.
    assert 138 <= len(slipped) <= 198
    assert all(row["completion"] != row["answer"] for row in rows("train", count=50, digits=6, careless=1.0)[:5])
    with pytest.raises(DataError, match="careless is 1.5"):
        rows("train", careless=1.5)
