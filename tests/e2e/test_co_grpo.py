"""Co-GRPO through the command line: what an update does not train stays bit for bit, and the schedule decodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dllm_rl.models.policy_head import is_head_parameter
from dllm_rl.samplers.names import FEATURES
from tests.e2e.runs import PYTHON, launch, metrics, recipe, run, workshop, write

HEAD = {"type": "schedule", "features": len(FEATURES), "actions": 2}
OPTIONS = {"learned": "commit temperature", "sigma": 0.6}


def co_grpo(folder: Path, output: str, **model: Any) -> dict[str, Any]:
    algorithm = {"type": "co_grpo", "network_updates": 1, "schedule_updates": 1}
    tree = recipe(folder, algorithm, output, max_steps=4, save_steps=1, head_learning_rate=1e-2)
    tree["model"] |= model
    return tree


def parts(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights of the network and of the head."""
    (file,) = folder.glob("*model.safetensors")
    saved = load_file(file)
    head = {name: value for name, value in saved.items() if is_head_parameter(name)}
    return {name: value for name, value in saved.items() if name not in head}, head


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a and a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": ["q_proj"]}], ids=["full", "lora"])
def test_turns_leave_the_other_part_as_it_is_and_the_schedule_decodes(tmp_path: Path, lora: Any) -> None:
    folder = workshop(tmp_path)
    tree = co_grpo(folder, "run", **({"lora": lora} if lora else {}))
    done = launch(write(folder, tree))
    assert done.returncode == 0, done.stderr
    output = folder / "run"
    saved = [parts(output / f"checkpoint-{update}") for update in (1, 2, 3, 4)]
    for before, after, trained in zip(saved, saved[1:], ("head", "network", "head"), strict=False):
        assert same(before[0], after[0]) == (trained == "head")
        assert same(before[1], after[1]) == (trained == "network")
    lines = [line for line in metrics(output) if "loss" in line]
    assert ["schedule/ratio" in line for line in lines] == [False, True, False, True]
    assert ["policy/ratio" in line for line in lines] == [True, False, True, False]
    for line in lines:
        ratio = line.get("schedule/ratio", line.get("policy/ratio"))
        assert ratio == pytest.approx(1.0, abs=1e-4)
    options = ["--option", "learned=commit temperature", "--gen-length", "8", "--temperature", "1.0"]
    command = [PYTHON, "-m", "dllm_rl", "generate", str(output), "--prompt", "1+2=", "--sampler", "schedule", *options]
    found = run(command)
    assert found.returncode == 0, found.stderr
