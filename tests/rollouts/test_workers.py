"""Reward functions in processes of their own: the same values, and what one does to its process stays there."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dllm_rl.errors import RecipeError, RewardError
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.rollouts.workers import RemoteFunction

FUNCTIONS = '''
import asyncio, ctypes, os, pathlib, sys, threading, time
HERE = pathlib.Path(__file__).parent
calls = 0

def lengths(completions, completion_ids, answer, forwards, **columns):
    """Needs all rows at once, a column, a fact of the rollout, and its own order."""
    most = max(map(len, completions))
    return [len(c) / most + f + sum(ids) if a else None
            for c, ids, a, f in zip(completions, completion_ids, answer, forwards, strict=True)]

def counts(completions, **columns):
    global calls
    calls += 1
    return [float(calls)] * len(completions)

async def waits(completions, **columns):
    await asyncio.sleep(0)
    return [float(os.getpid())] * len(completions)

def lives_in(completions, **columns):
    seen = os.environ["CUDA_VISIBLE_DEVICES"]
    assert seen == "" and "torch" not in sys.modules
    return [float(os.getpid())] * len(completions)

def leaves(completions, **columns):
    if "die" in completions:
        os._exit(0)
    return [1.0] * len(completions)

def crashes_once(completions, **columns):
    if not (HERE / "crashed").exists():
        (HERE / "crashed").touch()
        os.abort()
    return [2.0] * len(completions)

def crashes_on_many(completions, **columns):
    if len(completions) > 1:
        ctypes.string_at(0)
    return [1.0]

def raises(completions, **columns):
    raise KeyError("no such column")

def gives_up(completions, **columns):
    sys.exit(3)

def cannot_be_sent(completions, **columns):
    return [threading.Lock()] * len(completions)

def blocks(completions, **columns):
    return [float(10 ** len(completions) ** 20)]
'''
PROMPTS, TEXTS, IDS = ["one?", "two?", "three?"], ["1", "die", "333"], [[1], [2, 2], [3, 3, 3]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    return tmp_path


@pytest.fixture
def judge(folder: Path) -> Iterator[Any]:
    panels: list[RewardPanel] = []

    def made(*names: str, workers: int = 2, texts: list[str] = TEXTS, time_limit: float = 60.0) -> Any:
        panel = RewardPanel.load([f"mine.py:{name}" for name in names], folder, workers=workers, time_limit=time_limit)
        panels.append(panel)
        columns = {"answer": [True, False, True]}
        call = lambda: panel(PROMPTS, texts, IDS, columns, rollout={"forwards": [4, 5, 6]}, update=3)  # noqa: E731
        return call

    yield made
    for panel in panels:
        for function in panel.functions:
            if isinstance(function.function, RemoteFunction):
                function.function.worker.kill()


def test_values_are_those_of_the_trainers_own_process(judge: Any, folder: Path) -> None:
    there, here = judge("lengths", "counts"), judge("lengths", "counts", workers=0)
    results = [[call().per_function for _ in range(2)] for call in (there, here)]
    assert results[0] == results[1]
    assert results[0][1] == {"mine.lengths": [1 / 3 + 4 + 1, None, 1 + 6 + 9], "mine.counts": [2.0] * 3}


def test_functions_share_processes_and_asynchronous_ones_stay(judge: Any) -> None:
    import os

    result = judge("lives_in", "waits", "counts", "leaves", texts=["1", "2", "3"])().per_function
    assert math.isfinite(result["mine.lives_in"][0]) and result["mine.lives_in"][0] != os.getpid()
    assert result["mine.waits"] == [float(os.getpid())] * 3
    assert result["mine.leaves"] == [1.0] * 3


def test_a_process_that_ends_is_started_again(judge: Any, caplog: pytest.LogCaptureFixture) -> None:
    call = judge("crashes_once")
    with caplog.at_level(logging.WARNING):
        assert call().total == [2.0] * 3
    assert "crashes_once ended its process (SIGABRT), attempt 1 of 2; such ends so far: 1" in caplog.text
    assert call().total == [2.0] * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("leaves", r"mine.leaves ended its process \(exit code 0\) 2 times at update 3, by row 1 \(prompt 'two\?'\)"),
        ("crashes_on_many", r"mine.crashes_on_many ended its process \(SIGSEGV\) 2 times at update 3, by all rows tog"),
        ("raises", r"mine.raises raised KeyError: 'no such column' at update 3.*at .*mine.py:\d+ in raises"),
        ("gives_up", "mine.gives_up raised SystemExit: 3 at update 3, for rows 0 to 2"),
        ("cannot_be_sent", "mine.cannot_be_sent raised TypeError: cannot pickle '_thread.lock'"),
    ],
)
def test_what_a_function_does_to_its_process_is_told_and_no_more(judge: Any, name: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        judge(name)()


def test_code_that_nothing_interrupts_is_killed_and_shown(judge: Any) -> None:
    call = judge("blocks", "counts", time_limit=0.3)
    with pytest.raises(RewardError, match=r"blocks did not return within 0.3 s at update 3.*mine.py:\d+ in blocks"):
        call()


def test_a_call_that_was_left_behind_answers_no_later_one(judge: Any) -> None:
    call = judge("raises", "counts")
    for _ in range(2):  # counts is under way when raises ends the judgement
        with pytest.raises(RewardError, match="mine.raises raised KeyError"):
            call()


def test_signatures_are_still_checked_before_there_is_anything_to_judge(folder: Path) -> None:
    (folder / "odd.py").write_text("def needs_more(completions, colour, **columns): ...")
    panel = RewardPanel.load(["odd.py:needs_more"], folder, workers=1)
    with pytest.raises(RewardError, match="needs_more: missing a required argument: 'colour'"):
        panel.refuse_signatures(["prompts", "completions"])
    with pytest.raises(RecipeError, match="no function 'none'"):
        RewardPanel.load(["odd.py:none"], folder, workers=1)


def test_processes_end_with_the_one_that_asked(folder: Path) -> None:
    program = f"""
        import os, signal
        from pathlib import Path
        from dllm_rl.rollouts.rewards import RewardPanel
        panel = RewardPanel.load(["mine.py:lives_in"], Path({str(folder)!r}), workers=1)
        print(panel(["p"], ["c"], [[1]], {{}}).total[0], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -9  # and its output, which the process that it started had too, is at an end
    assert float(done.stdout) > 0
