"""A model answers from the command line: shared, killed, taken up again, in any batch: the same bytes."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dllm_rl.cli import main
from dllm_rl.errors import DataError, RecipeError
from dllm_rl.evaluation import sitting
from dllm_rl.evaluation.answer import answer
from dllm_rl.evaluation.measure import evaluate_model
from dllm_rl.evaluation.metrics import EvalResult, Record
from dllm_rl.evaluation.sitting import Progress, Shard
from dllm_rl.evaluation.task import load_task, questions_of
from dllm_rl.models.load import load_model
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.toys.model import tiny_llada

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = str(ROOT / "recipes/weights/arithmetic")
SAMPLED = RolloutSettings(sampler="rl", gen_length=5, temperature=0.9)


def write_rows(file: Path, count: int) -> Path:
    """Sums whose prompts are not equally long."""
    sums = [(i * 37 % 10 ** (1 + i % 3), i * 91 % 10 ** (1 + i // 2 % 3)) for i in range(count)]
    file.write_text("".join(json.dumps({"question": f"{a}+{b}=", "answer": str(a + b)}) + "\n" for a, b in sums))
    return file


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model and seven rows."""
    folder = tmp_path_factory.mktemp("workshop")
    tiny_llada(seed=0, hidden=16, mlp=32, layers=1, max_positions=64).save(folder / "model")
    write_rows(folder / "sums.jsonl", 7)
    run(folder, folder / "whole")
    return folder


@pytest.fixture
def whole(workshop: Path) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    return contents(workshop / "whole")


def run(workshop: Path, out: Path | None, **options: Any) -> EvalResult | None:
    how = {"settings": SAMPLED, "data": str(workshop / "sums.jsonl"), "samples": 2, "batch_size": 2, "out": out}
    return evaluate_model(str(workshop / "model"), ["arithmetic"], **(how | options)).get("arithmetic")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class Interrupted(Exception):
    pass


class Killer(Progress):
    """Ends the run after so many batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def add(self, records: Sequence[Record]) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted


def test_records_summary_and_result_agree(workshop: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    result = run(workshop, None)
    assert result is not None and result == run(workshop, workshop / "whole")  # finished: read, not answered again
    assert [Record(**json.loads(line)) for line in whole["arithmetic.jsonl"].splitlines()] == list(result.records)
    assert [(record.index, record.sample) for record in result.records] == [(i, s) for i in range(7) for s in range(2)]
    assert any(a.completion != b.completion for a, b in zip(result.records[::2], result.records[1::2], strict=True))
    summary = json.loads(whole["arithmetic.json"])
    assert (summary["n"], summary["samples"], summary["accuracy"]) == (7, 2, result.accuracy)
    assert summary["pass_at"] == {"1": pytest.approx(result.accuracy), "2": result.pass_at(2).accuracy}
    assert result.protocol is not None and summary["line"] == result.protocol.line()
    assert set(whole) == {"arithmetic.jsonl", "arithmetic.json"}


@pytest.mark.parametrize("batches", [3])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    workshop: Path, whole: dict[str, bytes], tmp_path: Path, batches: int
) -> None:
    out = tmp_path / "again"
    with pytest.raises(Interrupted):
        run(workshop, out, progress=Killer(batches))
    (part,) = out.iterdir()
    assert len(part.read_bytes().splitlines()) == 1 + 2 * batches
    run(workshop, out)
    assert contents(out) == whole


@pytest.mark.slow  # test_store.py does it without a model
def test_a_part_cut_anywhere_is_taken_up_again(workshop: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """What a crash leaves of a file is a beginning of it, within a line or between two."""
    out = tmp_path / "cut"
    with pytest.raises(Interrupted):
        run(workshop, out, progress=Killer(5))
    part = out / "arithmetic.jsonl.part-0"
    data = part.read_bytes()
    for length in (0, len(data) // 3, len(data) - 1):
        for file in out.iterdir():
            file.unlink()
        part.write_bytes(data[:length])
        run(workshop, out)
        assert contents(out) == whole, length


class Counting(Progress):
    def __init__(self) -> None:
        self.answered: list[tuple[int, int]] = []

    def add(self, records: Sequence[Record]) -> None:
        self.answered += [(record.index, record.sample) for record in records]


def test_nothing_is_answered_twice(workshop: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(workshop, tmp_path / "out", progress=Killer(4))
    counting = Counting()
    run(workshop, tmp_path / "out", progress=counting)
    assert len(counting.answered) == 14 - 8
    run(workshop, tmp_path / "out", progress=counting)
    assert len(counting.answered) == 14 - 8


@pytest.mark.parametrize("world", [3])
def test_processes_share_the_work(workshop: Path, whole: dict[str, bytes], tmp_path: Path, world: int) -> None:
    out, counting = tmp_path / "shared", Counting()
    results = [run(workshop, out, shard=Shard(rank, world), progress=counting) for rank in reversed(range(world))]
    assert sorted(counting.answered) == [(i, s) for i in range(7) for s in range(2)]
    assert [each is not None for each in results] == [False] * (world - 1) + [True]
    assert contents(out) == whole


def test_another_number_of_processes_goes_on(workshop: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "shared"
    for rank in (2, 0):
        with pytest.raises(Interrupted):
            run(workshop, out, shard=Shard(rank, 3), progress=Killer(2))
    assert {file.name for file in out.iterdir()} == {f"arithmetic.jsonl.part-{rank}" for rank in (0, 2)}
    run(workshop, out)
    assert contents(out) == whole


@pytest.mark.parametrize(
    "settings",
    [SAMPLED, pytest.param(RolloutSettings(sampler="llada", gen_length=5, temperature=0.0), marks=pytest.mark.slow)],
    ids=["sampled", "greedy"],
)
def test_batch_1_and_16_in_any_order(tmp_path: Path, settings: RolloutSettings) -> None:
    model = load_model(WEIGHTS)
    questions = questions_of(load_task("arithmetic", path=str(write_rows(tmp_path / "rows.jsonl", 16))))
    assert len({len(question) for question in map(str, questions.prompts)}) > 3
    items = [(index, 0) for index in range(16)]
    records = {}
    for size in (1, 16):
        order = random.Random(size).sample(items, len(items))
        engine = LocalEngine(model, settings)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        found = [record for batch in batches for record in answer(engine, model, questions, batch, seed=1)]
        records[size] = {(record.index, record.sample): record for record in found}
        assert list(records[size]) == order
    assert records[1] == records[16]


def test_another_evaluation_is_refused(workshop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(workshop, out, progress=Killer(1))
    for change, message in (
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"samples": 3}, "samples is 2 there, 3 here"),
        ({"limit": 5}, "num_examples is 7 there, 5 here"),
        ({"settings": RolloutSettings(sampler="rl", gen_length=6, temperature=0.9)}, "gen_length is 5 there, 6 here"),
    ):
        with pytest.raises(RecipeError, match=message):
            run(workshop, out, **change)
    other = (workshop / "sums.jsonl").read_text().replace("0+", "1+", 1)
    (tmp_path / "other.jsonl").write_text(other)
    with pytest.raises(RecipeError, match="data is"):
        run(workshop, out, data=str(tmp_path / "other.jsonl"))


def test_files_of_unknown_origin_are_left_alone(workshop: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.jsonl"
    out.write_text("mine")
    with pytest.raises(RecipeError, match=r"without mine\.json that says how it was made"):
        run(workshop, out)
    assert out.read_text() == "mine"
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(RecipeError, match="no evaluation of this version"):
        run(workshop, out)
    (tmp_path / "mine.json").write_text("{")
    with pytest.raises(RecipeError, match="cannot be read"):
        run(workshop, out)


def test_two_writers_of_one_part_are_refused(workshop: Path, tmp_path: Path) -> None:
    class Second(Progress):
        def add(self, records: Sequence[Record]) -> None:
            with pytest.raises(RecipeError, match="another process is writing"):
                run(workshop, tmp_path / "out")
            raise Interrupted

    with pytest.raises(Interrupted):
        run(workshop, tmp_path / "out", progress=Second())


def test_a_refused_run_leaves_nothing_behind(workshop: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text('{"question": "1+1=", "answer": "2"}\n' + json.dumps({"question": "1" * 60, "answer": "2"}) + "\n")
    with pytest.raises(DataError, match="prompt 1 has 60 tokens"):  # before the first answer
        run(workshop, tmp_path / "out", data=str(file))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"shard": Shard(0, 2), "out": None}, "2 processes share their answers by files"),
        ({"prompt": "d1"}, "no prompt 'd1'; there is one prompt, without a name"),
    ],
)
def test_what_cannot_be_asked_for(workshop: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run(workshop, **{"out": tmp_path / "out", **options})


def test_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(RecipeError, match="two of the tasks arithmetic, eval/arithmetic.py have one name"):
        evaluate_model(WEIGHTS, ["arithmetic", "eval/arithmetic.py"], SAMPLED)


def test_the_model_is_loaded_once_and_only_if_it_is_needed(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    monkeypatch.setattr(sitting, "load_model", lambda path, **how: loads.append(path) or load_model(path, **how))
    (tmp_path / "other.py").write_text((ROOT / "eval/arithmetic.py").read_text().replace('name = "arith', 'name = "b'))
    tasks, model = ["arithmetic", str(tmp_path / "other.py")], str(workshop / "model")
    data = dict.fromkeys(tasks, str(workshop / "sums.jsonl"))
    for _ in range(2):
        found = evaluate_model(model, tasks, SAMPLED, data=data, out=tmp_path / "out")
        assert list(found) == ["arithmetic", "bmetic"] and loads == [model]


def command(workshop: Path, out: Path, *more: str) -> list[str]:
    data = str(workshop / "sums.jsonl")  # of the only task: it needs no name
    source = ["eval", str(workshop / "model"), "--tasks", "arithmetic", "--data", data, "--out", str(out)]
    how = ["--sampler", "rl", "--gen-length", "5", "--temperature", "0.9", "--samples", "2", "--batch-size", "2"]
    return [*source, *how, "--device", "cpu", *more]


def test_the_command_writes_what_the_library_writes(
    workshop: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(workshop, tmp_path / "cli")) == 0
    assert contents(tmp_path / "cli") == whole
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("arithmetic: avg@2 ") and printed[0].endswith("(n 7)")
    assert [line.split()[0] for line in printed[2:4]] == ["pass@1", "pass@2"]
    assert printed[-1].strip() == json.loads(whole["arithmetic.json"])["line"]
    assert main(["compare", str(tmp_path / "cli"), str(workshop / "whole")]) == 0
    assert "0 of 14" in capsys.readouterr().out


def test_the_command_refuses_processes_that_cannot_meet(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["eval", WEIGHTS, "--tasks", "arithmetic", "--processes", "2"]
    assert main(flags) == 2 and "give --out" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert main([*flags, "--out", str(tmp_path)]) == 2 and "a launcher has started" in capsys.readouterr().err


class Beat(Progress):
    """Tells another process of every batch."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def add(self, records: Sequence[Record]) -> None:
        os.write(self.descriptor, b"x")


def killed_in_a_child(workshop: Path, out: Path, batches: int, delay: float) -> bool:
    """Evaluate in a fork, and kill it so many batches and seconds after its start; False if it was done before."""
    listen, tell = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(listen)
            torch.set_num_threads(1)
            code = int(run(workshop, out, batch_size=1, progress=Beat(tell)) is None)
        finally:
            os._exit(code)
    os.close(tell)
    heard = sum(len(os.read(listen, 1)) for _ in range(batches))
    select.select([], [], [], delay)
    os.kill(child, signal.SIGKILL)
    os.close(listen)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == -signal.SIGKILL or (code == 0 and heard <= batches)
    return code != 0


@pytest.mark.slow
def test_killed_at_thirty_random_points(workshop: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """One evaluation is killed again and again, each time a little further on; then the next one."""
    draw, rounds, out = random.Random(1), 0, tmp_path / "0"
    for _ in range(30):
        if not killed_in_a_child(workshop, out, draw.randrange(5), draw.uniform(0.0, 0.01)):
            assert contents(out) == whole
            rounds, out = rounds + 1, tmp_path / str(rounds + 1)
    run(workshop, out, batch_size=1)
    assert contents(out) == whole


DOOMED = """
import os, random, signal, sys, threading
from dllm_rl.cli import main, progress

class Doomed(progress.Bar):
    def start(self, *task):
        super().start(*task)
        timer = threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()

progress.Bar = Doomed
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_killed_at_random_times(workshop: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Real kills, at any moment of the work; test_store.py has every moment of a write."""
    out, draw, kills = tmp_path / "killed", random.Random(0), 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for delay in [draw.uniform(0.0, 0.1) for _ in range(3)] + [60.0]:
        argv = [sys.executable, "-c", DOOMED, str(delay), *command(workshop, out, "--batch-size", "1")]
        killed = subprocess.run(argv, env=environment, cwd=ROOT, check=False).returncode
        kills += killed == -signal.SIGKILL
    assert killed == 0 and kills > 0 and contents(out) == whole


@pytest.mark.slow
def test_processes_by_the_flag_and_by_accelerate(workshop: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    from tests.e2e import runs

    done = runs.run([sys.executable, "-m", "dllm_rl", *command(workshop, tmp_path / "flag", "--processes", "2")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("arithmetic: avg@2") >= 1 and contents(tmp_path / "flag") == whole
    done = runs.run([*runs.ACCELERATE, *runs.TWO_PROCESSES, "-m", "dllm_rl", *command(workshop, tmp_path / "launched")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "launched") == whole
