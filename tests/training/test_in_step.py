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
from dllm_rl.diffusion.transform import Transform
from dllm_rl.models.policy_head import attach_head
from dllm_rl.toys.model import tiny_llada
from dllm_rl.training.in_step import in_step

rank, blocks, store = int(sys.argv[1]), sys.argv[2].split(","), sys.argv[3]
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=40)
)
torch.set_num_threads(1)
model, gathers = tiny_llada(hidden=16, mlp=16, layers=1), []
head = {"planner": {"type": "planner"}, "schedule": {"type": "schedule", "features": 3, "actions": 1}}.get(sys.argv[4])
if head is not None:
    attach_head(model.network, head)

def gather(part):
    """Stands for the weights of a module, gathered from all processes: everyone must come to the same one."""
    def hook(module, *inputs):
        mine = torch.tensor([1.0 + rank, part, part**2])
        distributed.all_reduce(mine)
        gathers.append((part, *mine.tolist()))
    return hook

model.network.model.layers[0].register_forward_pre_hook(gather(1))
for name, part in (("planner", 2), ("schedule", 3)):
    if hasattr(model.network, name):
        getattr(model.network, name).register_forward_pre_hook(gather(part))

tokens = torch.tensor([[1, 2]])
everywhere = torch.ones_like(tokens, dtype=torch.bool)

def network():
    model.logits_at(tokens, everywhere)

def guided():
    model.score(tokens, tokens, everywhere, transform=Transform(cfg_scale=1.0), prompt=~everywhere)

def planned():
    model.plan_at(tokens, everywhere)

def scheduled():
    model.schedule_at(torch.zeros(2, 3))

kinds = {"n": network, "g": guided, "p": planned, "s": scheduled}
for block in blocks:  # one block after the other, as windows follow each other
    with torch.no_grad(), in_step(model, spread=True):
        for kind in block:
            kinds[kind]()
    distributed.barrier()
agreed = all((total, first, second) == (3.0, 2.0 * part, 2.0 * part**2) for part, total, first, second in gathers)
print("".join(str(part) for part, *_ in gathers) or "-", agreed, len(model.network._forward_pre_hooks))
distributed.destroy_process_group()
'''


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "head", "gathered"),
    [
        ("nnn,,nn", ",nnnn,nn", "none", "1" * 9),
        (",", ",", "none", "-"),
        ("g,n", "ggg,", "none", "11" * 3 + "1"),
        ("p,ppp", "pp,", "planner", "12" * 5),
        ("ns,", "nsnsns,ns", "schedule", "13" * 4),
    ],
)
def test_everyone_makes_the_forwards_of_the_busiest(
    tmp_path: Path, first: str, second: str, head: str, gathered: str
) -> None:
    """As many, and of the same kind: a planner's weights, or a schedule's, are gathered from all as well."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), blocks, str(tmp_path / "store"), head], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for rank, blocks in enumerate((first, second))
    ]
    for rank in ranks:
        out, _ = rank.communicate(timeout=120)
        assert rank.returncode == 0
        assert out.split() == [gathered, "True", "0"], out


def test_with_whole_weights_nothing_is_waited_for(tiny: DiffusionModel) -> None:
    with in_step(tiny, spread=False):
        assert not tiny.network._forward_pre_hooks
        tiny.logits_at(torch.tensor([[1]]), torch.tensor([[True]]))


def test_an_error_inside_is_not_waited_with(tiny: DiffusionModel) -> None:
    """The launcher ends the other processes; this one says what went wrong."""
    with pytest.raises(ZeroDivisionError), in_step(tiny, spread=True):
        1 / 0  # noqa: B018
    assert not tiny.network._forward_pre_hooks
