"""Processes that share weights wait for each other, however many forwards each makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.training.in_step import in_step

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = '''
import datetime, sys, torch
from torch import distributed
from dllm_rl.toys.model import tiny_llada
from dllm_rl.training.in_step import in_step

rank, forwards, store = int(sys.argv[1]), [int(n) for n in sys.argv[2].split(",")], sys.argv[3]
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=40)
)
torch.set_num_threads(1)
model, gathers = tiny_llada(hidden=16, mlp=16, layers=1), []

def gather(module, inputs):
    """Stands for the weights of a layer, gathered from all processes: everyone must come."""
    part = torch.tensor([1.0 + rank])
    distributed.all_reduce(part)
    gathers.append(float(part))

model.network.model.layers[0].register_forward_pre_hook(gather)
tokens = torch.tensor([[1, 2]])
for count in forwards:  # one block after the other, as windows follow each other
    with in_step(model, spread=True):
        for _ in range(count):
            model.logits_at(tokens, torch.ones_like(tokens, dtype=torch.bool))
    distributed.barrier()
print(len(gathers), set(gathers), len(model.network._forward_pre_hooks))
distributed.destroy_process_group()
'''


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second", "most"), [("3,0,2", "0,4,2", 9), ("0,0", "0,0", 0)])
def test_everyone_makes_as_many_forwards_as_the_busiest(tmp_path: Path, first: str, second: str, most: int) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), counts, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for rank, counts in enumerate((first, second))
    ]
    for rank in ranks:
        out, _ = rank.communicate(timeout=120)
        assert rank.returncode == 0
        assert out.split() == [str(most), *("{3.0}" if most else "set()").split(), "0"], out


def test_with_whole_weights_nothing_is_waited_for(tiny: DiffusionModel) -> None:
    with in_step(tiny, spread=False):
        assert not tiny.network._forward_pre_hooks
        tiny.logits_at(torch.tensor([[1]]), torch.tensor([[True]]))


def test_an_error_inside_is_not_waited_with(tiny: DiffusionModel) -> None:
    """The launcher ends the other processes; this one says what went wrong."""
    with pytest.raises(ZeroDivisionError), in_step(tiny, spread=True):
        1 / 0  # noqa: B018
    assert not tiny.network._forward_pre_hooks
