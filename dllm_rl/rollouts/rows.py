"""Rows of a local file or of a hub data set."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dllm_rl.errors import DataError

Row = dict[str, Any]


def read_rows(path: str | Path, *, name: str | None = None, split: str = "train") -> list[Row]:
    """Rows of a .jsonl, .json, .csv (every value as text) or .parquet file, else of the hub data set of that id.

    Args:
        name: configuration of a hub data set.
        split: of a hub data set; slices such as "train[-500:]" work.

    Raises:
        DataError: the file is missing, unreadable or empty, or the hub data set cannot be loaded.
    """
    file = Path(path).expanduser()
    reader = _READERS.get(file.suffix)
    if reader is None and file.is_file():
        raise DataError(f"{path} is a file of a kind that is not read; local files end in {', '.join(_READERS)}")
    if reader is None:
        rows = _from_hub(str(path), name, split)
    elif not file.is_file():
        raise DataError(f"no file {path} (looked in {Path.cwd()}); give an existing file or a hub id")
    else:
        try:
            rows = reader(file)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} cannot be read as {file.suffix}: {error}") from error
    if not rows:
        raise DataError(f"{path} holds no rows")
    return rows


def _from_hub(path: str, name: str | None, split: str) -> list[Row]:
    from datasets import load_dataset  # type: ignore[import-untyped, unused-ignore]

    try:
        return [dict(row) for row in load_dataset(path, name, split=split)]
    except Exception as error:  # the library raises its own, the network's and the file system's
        raise DataError(
            f"cannot load {path!r} ({split}) as a hub data set: {error}; local files end in {', '.join(_READERS)}"
        ) from error


def _read_jsonl(file: Path) -> list[Row]:
    lines = file.read_text(encoding="utf-8").split(
        "\n"
    )  # `splitlines` would also cut inside texts, at U+2028 and others
    return [_object(line, f"{file}, line {i}") for i, line in enumerate(lines, start=1) if line.strip()]


def _object(text: str, place: str) -> Row:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error}); expected one object a line") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: found a {type(row).__name__}; expected an object")
    return row


def _read_json(file: Path) -> list[Row]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: not JSON ({error}); expected a list of objects") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file}: expected a list of objects")
    return rows


def _read_csv(file: Path) -> list[Row]:
    with file.open(newline="", encoding="utf-8") as handle:
        return [dict(row) for row in csv.DictReader(handle)]


def _read_parquet(file: Path) -> list[Row]:
    import pyarrow.parquet

    rows: list[Row] = pyarrow.parquet.read_table(file).to_pylist()
    return rows


_READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
