"""Whatever happens to one of two processes ends the job within a minute, with one reason; what can be survived is."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.e2e import runs

REWARD = '''
import ctypes, gc, os, pathlib, signal
HERE = pathlib.Path(__file__).parent
calls = 0

def digits(prompts, completions, completion_ids, **columns):
    """Share of digits; in the second call on rank 1, a fault that a file names."""
    global calls
    calls += 1
    fault = HERE / "fault.txt"
    if calls == 2 and os.environ.get("RANK") == "1":
        with open(HERE / "now", "w") as now:
            now.write("now")
        globals()[fault.read_text()]()
    return [sum(c.isdigit() for c in text) / 8 for text in completions]

def dies():
    os.kill(os.getpid(), signal.SIGKILL)

def leaves():
    os._exit(0)

def raises():
    raise KeyError("no such column")

def blocks():
    10 ** len("abc") ** 20

def breaks_the_model():
    import torch
    def broken(*args, **kwargs):
        raise ValueError("a kernel failed")
    torch.nn.Linear.forward = broken

def spoils_the_weights():
    import torch
    from dllm_rl.models.denoiser import DiffusionModel
    for model in [each for each in gc.get_objects() if type(each) is DiffusionModel]:
        with torch.no_grad():
            next(model.network.parameters()).fill_(float("nan"))

def crashes_once(prompts, completions, **columns):
    if not (HERE / "crashed").exists():
        (HERE / "crashed").touch()
        ctypes.string_at(0)
    return digits(prompts, completions, **columns)
'''
SECONDS_TO_START, SECONDS_TO_END = 240, 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs.workshop(tmp_path)
    (tmp_path / "reward.py").write_text(REWARD)
    return tmp_path


def _fails(folder: Path, fault: str, *overrides: str, stage: int | None = None) -> str:
    """Launch two processes, wait for the fault on rank 1, and for the end; what was said."""
    (folder / "fault.txt").write_text(fault)
    tree = runs.recipe(folder, {"type": "diffu_grpo"}, "run", per_device_train_batch_size=2, max_steps=3, save_steps=1)
    zero = ["--config_file", str(runs.ROOT / f"recipes/accelerate/zero{stage}.yaml"), "--num_processes", "2"]
    launcher = runs.TWO_PROCESSES if stage is None else zero
    command = [*runs.ACCELERATE, *launcher, str(runs.write(folder, tree)), *overrides]
    os.mkfifo(folder / "now")
    now = os.open(folder / "now", os.O_RDWR | os.O_NONBLOCK)
    with (folder / "said").open("w") as said, _launched(command, said.fileno()) as job:
        assert select.select([now], [], [], SECONDS_TO_START)[0], (folder / "said").read_text()[-3000:]
        code = job.wait(SECONDS_TO_END)
    os.close(now)
    text = (folder / "said").read_text()
    assert code == 1, text[-3000:]
    assert "[rank0]:" not in text, "rank 0 has done nothing wrong"
    return text


@contextmanager
def _launched(command: list[str], said: int) -> Iterator[subprocess.Popen[bytes]]:
    """A job, no process of which is left behind."""
    with subprocess.Popen(command, stdout=said, stderr=said, env=runs.environment(), cwd=runs.ROOT) as job:
        family = psutil.Process(job.pid)
        try:
            yield job
        except BaseException:
            for each in [*family.children(recursive=True), family]:
                each.kill()
            raise


@pytest.mark.slow
def test_a_reward_that_raises_says_so_in_one_line(folder: Path) -> None:
    said = _fails(folder, "raises")
    line = "dllm-rl: rank 1: reward function reward.digits raised KeyError: 'no such column' at update 2"
    assert said.count(line) == said.count("no such column") == 1
    assert "traceback : RewardError: see the line of this rank above" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "seen"), [("dies", "Signal 9 (SIGKILL)"), ("leaves", "dllm-rl: rank 0: lost another")]
)
def test_a_process_that_goes_without_a_word_takes_the_other_along(folder: Path, fault: str, seen: str) -> None:
    assert seen in _fails(folder, fault)


@pytest.mark.slow
def test_an_error_in_the_model_shows_its_own_traceback_once(folder: Path) -> None:
    said = _fails(folder, "breaks_the_model", stage=3)
    assert said.count("[rank1]: ValueError: a kernel failed") == said.count("ValueError: a kernel failed") == 1
    assert "traceback : ValueError: see the traceback of this rank above" in said


@pytest.mark.slow
def test_numbers_that_are_not_finite_stop_all_and_are_saved(folder: Path) -> None:
    said = _fails(folder, "spoils_the_weights", stage=2)
    assert said.count("dllm-rl: rank 1: update 2: the loss is not finite, ") == 1
    assert "on another rank, which saves the rows" in said
    (file,) = (folder / "run/diverged").iterdir()
    assert file.name == "update-2-rank-1.jsonl" and str(file) in said
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 8  # two prompts, four completions each
    for line in lines:
        assert line["prompt"][-1] == "=" and line["reward"] == sum(c.isdigit() for c in line["completion"]) / 8
        assert all(set(view["logp"]) == {"nan"} and view["behaviour_logp"] is None for view in line["views"])
    assert [each.name for each in (folder / "run").glob("checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.slow
def test_a_process_whose_interpreter_is_blocked_is_shown_by_the_other(folder: Path) -> None:
    said = _fails(folder, "blocks", "reward.time_limit=4", "train.stuck_after=5")
    assert "dllm-rl: rank 0: no process has made a step for 5 s (train.stuck_after)" in said
    assert "in blocks" in said.partition("now rank 1")[2]


@pytest.mark.slow
def test_a_run_outlives_a_reward_that_crashes_in_a_process_of_its_own(folder: Path) -> None:
    trees = [runs.recipe(folder, {"type": "diffu_grpo"}, name, max_steps=2) for name in ("here", "there")]
    trees[1]["reward"] = {"functions": [f"{folder / 'reward.py'}:crashes_once"], "workers": 1}
    paths = [runs.write(folder, tree, Path(tree["output"]).name) for tree in trees]
    done = runs.run([runs.PYTHON, "-m", "tests.e2e.train_each", *map(str, paths)])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "reward function reward.crashes_once ended its process (SIGSEGV), attempt 1 of 2" in done.stderr
    assert runs.distance(*(runs.weights(Path(tree["output"])) for tree in trees)) == 0.0
