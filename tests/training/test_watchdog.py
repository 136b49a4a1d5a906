"""The watch over a job that stands still: what counts as standing still, and how it ends."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import distributed

from dllm_rl.training.watchdog import Watchdog, board_of_processes


def test_a_process_that_waits_is_not_stuck_while_another_gets_on() -> None:
    board = distributed.HashStore()
    waits, works = (Watchdog(60.0, rank, 2, board) for rank in range(2))
    for watchdog in (waits, works, waits):  # until both know each other
        watchdog._compare()
    since = waits._since
    works.step()
    works._compare()
    waits._compare()
    assert waits._since > since
    since = waits._since
    works._compare()
    waits._compare()
    assert waits._since == since  # neither got on


def test_every_forward_is_a_step_and_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    network, watchdog = torch.nn.Linear(1, 1), Watchdog(3600.0, board=board_of_processes())
    network(torch.ones(1))
    with watchdog.watching(network):
        network(torch.ones(1))
        network(torch.ones(1))
    network(torch.ones(1))
    assert watchdog.steps == 2


def test_a_failure_is_told_to_the_others() -> None:
    board = distributed.HashStore()
    watchdog = Watchdog(3600.0, 1, 2, board)
    with pytest.raises(ZeroDivisionError), watchdog.watching(torch.nn.Linear(1, 1)):
        raise ZeroDivisionError
    assert board.get("failed") == b"1 ZeroDivisionError"


def _run(body: str) -> subprocess.CompletedProcess[str]:
    program = """
        import time, torch
        from torch import distributed
        from dllm_rl.training import watchdog
        watchdog._SECONDS_FOR_A_REPLY = 0.1
        board = distributed.HashStore()
        network = torch.nn.Linear(1, 1)
        def waits_here():
            time.sleep(600)
        def blocks_here(n):
            return 10 ** n ** 20
    """
    text = textwrap.dedent(program) + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_a_job_that_stands_still_shows_where_and_ends() -> None:
    done = _run("""
        with watchdog.Watchdog(0.8).watching(network):
            network(torch.ones(1))
            waits_here()
    """)
    assert done.returncode == 1
    assert "dllm-rl: no process has made a step for 0.8 s (train.stuck_after)" in done.stderr
    assert "in waits_here" in done.stderr


@pytest.mark.slow
def test_a_process_that_is_alone_and_blocks_its_interpreter_ends() -> None:
    done = _run("""
        with watchdog.Watchdog(0.8).watching(network):
            time.sleep(0.3)
            blocks_here(3)
    """)
    assert done.returncode == 1
    assert "dllm-rl: no step was made in 0.8 s; nothing in this process can interrupt it" in done.stderr
    assert "in blocks_here" in done.stderr


@pytest.mark.slow
def test_a_process_ends_with_one_that_failed() -> None:
    done = _run("""
        board.set("failed", "0 ValueError")
        with watchdog.Watchdog(2.0, 1, 2, board).watching(network):
            waits_here()
    """)
    assert done.returncode == 1
    assert "dllm-rl: rank 1: rank 0 failed (ValueError, said there)" in done.stderr
