"""Worker processes: deadlines, recovery, threads, forks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dllm_rl.scoring.pool import Worker, WorkerDied, WorkerPool

SLOW = ("1", "(((9^{99})^{99})^{99})^{99}")  # a power that does not fit in memory


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(2)
    yield pool
    pool.close()


def test_verdicts(pool: WorkerPool) -> None:
    assert pool.equal(r"\sqrt{8}", r"2\sqrt{2}") is True
    assert pool.equal(r"\sqrt{8}", "2.8284271247461903") is False
    assert pool.equal("x+1", "1+x") is True
    assert pool.equal("x", r"\notacommand{{{") in (False, None)


def test_a_worker_that_overruns_is_killed_and_replaced(pool: WorkerPool) -> None:
    assert pool.equal("x+1", "1+x") is True
    assert pool.equal(*SLOW, seconds=0.2) is None
    assert pool.equal("x+1", "1+x") is True
    assert len(pool._all) == 1


def test_killed_means_gone() -> None:
    worker = Worker()
    with pytest.raises(WorkerDied):
        worker.ask(*SLOW, 0.05)
    assert worker.process.returncode is not None


def test_a_worker_that_died_in_between_costs_one_verdict(pool: WorkerPool) -> None:
    assert pool.equal("x+1", "1+x") is True
    pool._idle[0].process.kill()
    pool._idle[0].process.wait()
    assert pool.equal("x+1", "1+x") is None
    assert pool.equal("x+1", "1+x") is True


def test_threads_share_at_most_size_workers_and_get_their_own_verdicts(pool: WorkerPool) -> None:
    pairs = [(f"x+{i}", f"{i % 5}+x") for i in range(40)]
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda pair: pool.equal(*pair), pairs))
    assert verdicts == [i < 5 for i in range(40)]
    assert len(pool._all) <= 2


def test_workers_do_not_import_torch_and_end_with_their_parent() -> None:
    program = (
        "import sys\n"
        "from dllm_rl.scoring import pool\n"
        "assert pool.expressions_equal('x+1', '1+x') is True\n"
        "pid = pool._pool._idle[0].process.pid\n"
        "print(pid, 'torch' in open(f'/proc/{pid}/maps').read(), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    pid, worker_has_torch, parent_has_torch = done.stdout.split()
    assert (worker_has_torch, parent_has_torch) == ("False", "False")
    assert not os.path.exists(f"/proc/{pid}")


def test_a_forked_child_starts_workers_of_its_own() -> None:
    program = (
        "import os\n"
        "from dllm_rl.scoring import pool\n"
        "assert pool.expressions_equal('x+1', '1+x')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    assert not pool._pool._idle\n"
        "    raise SystemExit(0 if pool.expressions_equal('x+2', '2+x') else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert pool.expressions_equal('x+3', '3+x')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
