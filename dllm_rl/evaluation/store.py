"""Records on disk: written while a model answers, so that nothing is answered twice, and put in order at the end.

An evaluation of one task is FILE.jsonl, a record a line by example and sample, and FILE.json, what they add up to and
how they were made. Until all answers are there, each process appends to a FILE.jsonl.part-RANK of its own, whose first
line is the protocol. Processes share nothing but the folder: whichever sees that nothing is missing writes the end.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO, Any

from dllm_rl.errors import DataError, RecipeError
from dllm_rl.evaluation.answer import Item
from dllm_rl.evaluation.metrics import EvalResult, Record, result_of
from dllm_rl.evaluation.protocol import EvalProtocol
from dllm_rl.evaluation.summary import summary_of


class RecordStore:
    """The records of one evaluation of one task.

    Args:
        file: where they go, a .jsonl file.
        protocol: how they are made.
        items: all that are wanted.
        rank: of this process among those that answer.

    Raises:
        RecipeError: there are records of another evaluation, another process writes the same ones, or nothing can be
            written there.
    """

    def __init__(self, file: Path, protocol: EvalProtocol, items: Sequence[Item], rank: int = 0) -> None:
        self.file, self.protocol, self.items = file, protocol, items
        self.summary = file.with_suffix(".json")
        self.part = file.with_name(f"{file.name}.part-{rank}")
        self._handle: IO[bytes] | None = None
        self._refuse_others()

    def result(self) -> EvalResult | None:
        """The finished evaluation; None while answers are missing."""
        if not (self.file.is_file() and self.summary.is_file()):
            return None
        return result_of([Record(**line) for line in _lines(self.file)], self.protocol)

    def done(self) -> dict[Item, Record]:
        """Records of all processes so far."""
        records = (record for part in self._parts() for record in _records(part))
        return {(record.index, record.sample): record for record in records}

    def open(self) -> None:
        """Make ready to append; what cannot be written is told now, not after the first answers."""
        if self._handle is None:
            self._handle = self._opened()

    def append(self, records: Sequence[Record]) -> None:
        """Keep some records, in one write."""
        self.open()
        self._write("".join(json.dumps(asdict(record)) + "\n" for record in records))

    def finish(self) -> EvalResult | None:
        """Put the records in order, if none is missing; the result, or None.

        Several processes may do it at once: they write the same bytes.
        """
        done = self.done()
        if done.keys() >= set(self.items):
            records = [done[item] for item in sorted(self.items)]
            write_evaluation(self.file, result_of(records, self.protocol))
        result = self.result()  # of this process, or of another that took the parts away meanwhile
        if result is not None:
            for part in self._parts():
                part.unlink(missing_ok=True)
        return result

    def close(self) -> None:
        """Let another process write here."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
            if not any(_records(self.part)):
                self.part.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        return sorted(self.file.parent.glob(f"{self.file.name}.part-*"))

    def _refuse_others(self) -> None:
        """Whatever is there must be of this very evaluation."""
        if self.file.exists() and not self.summary.is_file() and not self._parts():
            raise RecipeError(
                f"--out: {self.file} is there, without {self.summary.name} that says how it was made; choose another "
                "or remove it"
            )
        for place, found in self._protocols():
            if different := self.protocol.differences(found):
                raise RecipeError(
                    f"--out: {place} is of another evaluation ({different[0]}); choose another or remove it"
                )

    def _protocols(self) -> Iterator[tuple[Path, EvalProtocol]]:
        """Of whatever holds records."""
        if self.summary.is_file():
            yield self.summary, read_protocol(self.summary)
        for part in self._parts():
            if any(_records(part)):
                yield part, protocol_from(next(_lines(part)), part)

    def _opened(self) -> IO[bytes]:
        """This process's part, locked, without a last line that a crash cut short."""
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            if self.file.is_dir():
                raise IsADirectoryError(f"{self.file} is a folder")
            handle = self.part.open("a+b")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecipeError(f"--out: another process is writing {self.part}; wait for it, or stop it") from error
        except OSError as error:
            raise RecipeError(f"--out {self.file}: cannot be written: {error}") from error
        handle.seek(0)
        data = handle.read()
        if data.count(b"\n") > 1:
            handle.truncate(data.rfind(b"\n") + 1)
        else:
            handle.truncate(0)
            handle.write(json.dumps({"protocol": self.protocol.as_dict()}).encode() + b"\n")
            handle.flush()
        return handle

    def _write(self, text: str) -> None:
        assert self._handle is not None
        try:
            self._handle.write(text.encode())
            self._handle.flush()
        except OSError as error:
            raise RecipeError(f"--out: {self.part} cannot be written: {error}; what is there is kept") from error


class MemoryStore:
    """Records that are kept nowhere else; the methods are those of `RecordStore`."""

    def __init__(self, protocol: EvalProtocol) -> None:
        self.protocol = protocol
        self.records: list[Record] = []

    def result(self) -> EvalResult | None:
        return None

    def done(self) -> dict[Item, Record]:
        return {(record.index, record.sample): record for record in self.records}

    def open(self) -> None:
        pass

    def append(self, records: Sequence[Record]) -> None:
        self.records += records

    def close(self) -> None:
        pass

    def finish(self) -> EvalResult | None:
        ordered = sorted(self.records, key=lambda record: (record.index, record.sample))
        return result_of(ordered, self.protocol)


def read_result(file: Path) -> EvalResult:
    """A finished evaluation of a task, from its records.

    Args:
        file: FILE.jsonl; FILE.json must be beside it.

    Raises:
        DataError: it is not there or not finished.
    """
    summary = file.with_suffix(".json")
    if not (file.is_file() and summary.is_file()):
        raise DataError(f"{file}: expected records and {summary.name} beside them, as `eval --out` leaves them")
    try:
        records = [Record(**line) for line in _lines(file)]
    except TypeError as error:
        raise DataError(f"{file}: a line is no record of an evaluation ({error})") from error
    return result_of(records, read_protocol(summary))


def read_protocol(summary: Path) -> EvalProtocol:
    """How an evaluation was made."""
    try:
        content = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{summary} cannot be read ({error}); choose another place or remove it") from error
    return protocol_from(content, summary)


def protocol_from(content: Any, place: Path) -> EvalProtocol:
    """The protocol in a file's object."""
    try:
        return EvalProtocol(**content["protocol"])
    except (KeyError, TypeError) as error:
        raise RecipeError(
            f"{place} is no evaluation of this version ({type(error).__name__}: {error}); choose another place or "
            "remove it"
        ) from error


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """Objects of the whole lines; another process may have taken the file away, or be writing the last one."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return
    for line in data[: data.rfind(b"\n") + 1].split(b"\n"):
        if line:
            yield json.loads(line)


def _records(part: Path) -> Iterator[Record]:
    """Of a part, behind its protocol."""
    return (Record(**line) for line in islice(_lines(part), 1, None))


def write_evaluation(file: Path, result: EvalResult) -> None:
    """Write a finished evaluation: records to FILE.jsonl, then what they add up to to FILE.json."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _replace(file, "".join(json.dumps(asdict(record)) + "\n" for record in result.records))
    _replace(file.with_suffix(".json"), json.dumps(summary_of(result), indent=2) + "\n")


def write_records(file: Path, records: Sequence[Record]) -> None:
    """One JSON object a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records), encoding="utf-8")


def _replace(file: Path, text: str) -> None:
    """Write a file that is whole whenever it is there."""
    passing = file.with_name(f"{file.name}.{os.getpid()}")
    passing.write_text(text, encoding="utf-8")
    passing.replace(file)
