from __future__ import annotations

from itertools import permutations, product

import pytest

from dllm_rl.errors import DataError
from dllm_rl.scoring.sudoku import is_completion
from dllm_rl.toys.small_sudoku import rows


def completions(puzzle: str) -> list[str]:
    """All solutions, by trying every completion of every row."""
    lines = [puzzle[start : start + 4] for start in range(0, 16, 4)]
    fits = [
        [
            line
            for line in map("".join, permutations("1234"))
            if all(g in ("0", c) for g, c in zip(given, line, strict=True))
        ]
        for given in lines
    ]
    return [grid for grid in map("".join, product(*fits)) if is_completion(puzzle, grid)]


@pytest.mark.parametrize("empty", [1, 8, 11])
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_puzzle_has_exactly_its_solution(split: str, empty: int) -> None:
    for row in rows(split, seed=3, start=5, count=6, empty=empty):
        assert row["prompt"] == f"{row['puzzle']}=" and row["puzzle"].count("0") == empty
        assert completions(row["puzzle"]) == [row["solution"]]
        assert row["completion"] == row["solution"]


def test_held_out_solutions_are_never_seen_in_training() -> None:
    test = {row["solution"] for seed in (0, 1) for row in rows("test", seed=seed, count=600, empty=4)}
    train = {row["solution"] for seed in (0, 1) for row in rows("train", seed=seed, count=3000, empty=4)}
    assert len(test) == 28 and len(train) == 260
    assert not test & train


def test_a_row_depends_on_its_index_alone_and_on_the_seed() -> None:
    whole = rows("train", seed=7, start=0, count=30, careless=0.5)
    assert rows("train", seed=7, start=11, count=4, careless=0.5) == whole[11:15]
    assert rows("train", seed=8, start=11, count=4, careless=0.5) != whole[11:15]


def test_every_cell_is_hidden_equally_often() -> None:
    listed = rows("train", count=1500, empty=2)  # nearly every such puzzle has one solution
    for cell in range(16):
        share = sum(row["puzzle"][cell] == "0" for row in listed) / 1500
        assert abs(share - 2 / 16) < 5 * (0.125 * 0.875 / 1500) ** 0.5


def test_careless_demonstrations_look_at_rows_alone() -> None:
    listed = rows("train", count=300, careless=0.6)
    assert [row["solution"] for row in listed] == [row["solution"] for row in rows("train", count=300)]
    slipped = [row for row in listed if row["completion"] != row["solution"]]
    for row in slipped:
        for start in range(0, 16, 4):
            given, written = row["puzzle"][start : start + 4], row["completion"][start : start + 4]
            filled = [w for g, w in zip(given, written, strict=True) if g == "0"]
            assert all(g in ("0", w) for g, w in zip(given, written, strict=True))
            assert sorted(written) == list("1234") and filled == sorted(filled)
    # 0.6 of all rows slip, and 0.84 of what looks at rows alone is wrong: 150 expected, standard deviation 8.7.
    assert 124 <= len(slipped) <= 176


def test_the_list_is_the_same_for_ever() -> None:
    (row,) = rows("test", count=1, empty=8)
    assert (row["puzzle"], row["solution"]) == ("0040021021003401", "1342421321343421")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split": "valid"}, "'valid'"),
        ({"start": -1}, "start is -1"),
        ({"empty": 0}, "empty is 0"),
        ({"empty": 13}, "empty is 13"),
        ({"careless": -0.1}, "careless is -0.1"),
    ],
)
def test_refuses_what_it_cannot_make(changed: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(**{"split": "train", "count": 1, **changed})  # type: ignore[arg-type]
