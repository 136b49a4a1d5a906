"""Leaving a process group can neither hang nor abort, whatever of the wrapped model is still there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = '''
import faulthandler, gc, sys
import torch
from torch import distributed, nn
from dllm_rl.recipe.launch import leave_process_group

rank, store, repetitions = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
faulthandler.dump_traceback_later(240, exit=True)  # a hang ends with the stacks of all threads
torch.set_num_threads(1)
gc.collect()
gc.freeze()  # only what is made below is searched: repetitions are quick
kept = []

def average(state, bucket):
    """A hook in Python: gloo's own threads take the interpreter's lock to run it, and to let go of it."""
    work = distributed.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0] / 2)

for repetition in range(repetitions):
    distributed.init_process_group("gloo", init_method=f"file://{store}-{repetition}", rank=rank, world_size=2)
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
    wrapped.register_comm_hook(None, average)
    wrapped(torch.ones(2, 4)).sum().backward()
    distributed.all_reduce(torch.ones(3))
    if repetition % 3 == 0:
        kept.append(wrapped)  # as a traceback keeps it
    elif repetition % 3 == 1:
        wrapped.cycle = wrapped
    wrapped = None
    leave_process_group()
    assert not distributed.is_initialized()
    kept.clear()
print("left", repetitions, "times")
'''


@pytest.mark.slow
def test_a_process_group_is_left_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "program.py")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), "60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in (0, 1)
    ]
    for rank in ranks:
        out, err = rank.communicate(timeout=300)
        assert rank.returncode == 0, err[-3000:]
        assert out.split() == ["left", "60", "times"]
