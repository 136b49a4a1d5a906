from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dllm_rl.errors import DataError
from dllm_rl.rollouts.rows import read_rows

ROWS = [{"question": 'a\u2028b, "c"', "answer": "01"}, {"question": "d\ne", "answer": "2"}]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "rows.csv").write_text('question,answer\n"a\u2028b, ""c""",01\n"d\ne",2\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    for suffix in ("jsonl", "json", "csv", "parquet"):
        assert read_rows(tmp_path / f"rows.{suffix}") == ROWS


def test_jsonl_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS))
    assert read_rows(tmp_path / "rows.jsonl") == ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", '{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("rows.jsonl", "[1]\n", "line 1: found a list"),
        ("rows.jsonl", "\n", "holds no rows"),
        ("rows.json", '{"a": 1}', "expected a list of objects"),
        ("rows.json", "nothing", "not JSON"),
        ("rows.csv", "a,b\n", "holds no rows"),
    ],
)
def test_unreadable_files(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_text_in_another_encoding(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes('{"a": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=rf"{name} cannot be read as"):
        read_rows(tmp_path / name)


def test_a_file_of_another_kind_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("text")
    with pytest.raises(DataError, match=r"rows\.txt is a file of a kind"):
        read_rows(tmp_path / "rows.txt")


def test_missing_file() -> None:
    with pytest.raises(DataError, match=r"no file none\.jsonl"):
        read_rows("none.jsonl")
