"""Records on disk: whatever a crash left of them, what is whole counts, and the end is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dllm_rl.errors import RecipeError
from dllm_rl.evaluation.metrics import Record, result_of
from dllm_rl.evaluation.store import RecordStore, read_result, write_evaluation
from tests.evaluation.test_protocol import protocol

ITEMS = [(index, sample) for sample in range(2) for index in range(3)]
RECORDS = [Record(i, f"{i}?", "é\n\u2028" * i, None, i / 2, "why", 8, s, 16, i) for i, s in ITEMS]
PROTOCOL = protocol(samples=2, num_examples=3)


def store(folder: Path, rank: int = 0) -> RecordStore:
    return RecordStore(folder / "gsm8k.jsonl", PROTOCOL, ITEMS, rank)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    ordered = sorted(RECORDS, key=lambda record: (record.index, record.sample))
    write_evaluation(tmp_path / "whole/gsm8k.jsonl", result_of(ordered, PROTOCOL))
    return contents(tmp_path / "whole")


def test_any_beginning_of_a_part_counts_for_its_whole_lines(whole: dict[str, bytes], tmp_path: Path) -> None:
    first = store(tmp_path / "full")
    first.append(RECORDS)
    first.close()
    data = (tmp_path / "full/gsm8k.jsonl.part-0").read_bytes()
    part = tmp_path / "cut/gsm8k.jsonl.part-0"
    part.parent.mkdir()
    for length in range(0, len(data), 7):
        part.write_bytes(data[:length])
        again = store(part.parent)
        done = max(0, data[:length].count(b"\n") - 1)
        assert again.done() == dict(zip(ITEMS[:done], RECORDS, strict=False))
        if length % 77 == 0:
            again.append(RECORDS[done:])
            again.close()
            assert again.finish() is not None and contents(part.parent) == whole
            for file in part.parent.iterdir():
                file.unlink()


def test_the_last_of_several_writers_ends_it(whole: dict[str, bytes], tmp_path: Path) -> None:
    writers = [store(tmp_path / "out", rank) for rank in range(3)]
    for rank, writer in enumerate(writers):
        writer.append(RECORDS[rank::3])
        assert (writer.finish() is None) == (rank < 2)
    assert contents(tmp_path / "out") == whole
    assert writers[0].finish() == writers[1].result() == read_result(tmp_path / "out/gsm8k.jsonl")


@pytest.mark.parametrize("left", [["gsm8k.jsonl"], ["gsm8k.jsonl", "gsm8k.json"]])
def test_a_crash_while_the_end_is_written(whole: dict[str, bytes], tmp_path: Path, left: list[str]) -> None:
    """Records first, then the summary, then the parts go."""
    first = store(tmp_path / "out")
    first.append(RECORDS)
    first.close()
    for name in left:
        (tmp_path / "out" / name).write_bytes(whole[name])
    again = store(tmp_path / "out")
    assert (again.result() is None) == (len(left) == 1)
    assert again.finish() is not None and contents(tmp_path / "out") == whole


def test_records_of_an_answer_given_twice_count_once(whole: dict[str, bytes], tmp_path: Path) -> None:
    """A batch that was cut short is answered again as a whole."""
    first = store(tmp_path / "out")
    first.append(RECORDS[:3])
    first.append(RECORDS[2:])
    assert first.finish() is not None and contents(tmp_path / "out") == whole


def test_a_part_of_another_evaluation_is_refused_if_it_holds_records(tmp_path: Path) -> None:
    part = tmp_path / "gsm8k.jsonl.part-4"
    header = json.dumps({"protocol": protocol(seed=5, samples=2, num_examples=3).as_dict()}) + "\n"
    part.write_text(header)
    store(tmp_path).close()
    part.write_text(header + '{"index": 0')
    store(tmp_path).close()
    over = store(tmp_path, 4)  # nothing of it is kept, not even how it was to be made
    over.append(RECORDS[:1])
    over.close()
    assert store(tmp_path).done() == {ITEMS[0]: RECORDS[0]}
    part.write_text(header)
    store_of_five = RecordStore(tmp_path / "gsm8k.jsonl", protocol(seed=5, samples=2, num_examples=3), ITEMS, 4)
    store_of_five.append(RECORDS[:1])
    with pytest.raises(RecipeError, match="part-4 is of another evaluation .*seed is 5 there, 0 here"):
        store(tmp_path)


def test_a_writer_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    only = store(tmp_path / "out")
    only.open()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["gsm8k.jsonl.part-0"]
    only.close()
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match="cannot be written"):
        RecordStore(tmp_path / "file/gsm8k.jsonl", PROTOCOL, ITEMS).open()
    (tmp_path / "gsm8k.jsonl").mkdir()
    with pytest.raises(RecipeError, match=r"gsm8k\.jsonl"):
        store(tmp_path).open()
