"""A run that is killed, or that fills the disk, goes on from its last whole checkpoint as if nothing had happened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e import runs

GRPO: dict[str, Any] = {"type": "diffu_grpo", "updates_per_rollout": 2}

# Kills its own process during the third rollout of the first attempt: after update 4, with checkpoint-4 on disk.
KILLING = (
    runs.REWARD
    + """
def killing(prompts, completions, completion_ids, **columns):
    import signal
    calls, done = HERE / "calls", HERE / "was-killed"
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    if len(calls.read_text()) == 3 and not done.exists():
        done.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return digits(prompts, completions, completion_ids, **columns)
"""
)

# Leaves room for small files only, from the third rollout of the first attempt on: checkpoint-6 cannot be written.
FILLING = (
    runs.REWARD
    + """
def filling(prompts, completions, completion_ids, **columns):
    import resource
    calls, done = HERE / "calls", HERE / "was-filled"
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    if len(calls.read_text()) == 3 and not done.exists():
        done.touch()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return digits(prompts, completions, completion_ids, **columns)
"""
)


def _recipe(folder: Path, output: str, function: str, lora: bool) -> Path:
    tree = runs.recipe(folder, GRPO, output, max_steps=8, save_steps=2)
    tree["reward"] = {"functions": [f"{folder / 'reward.py'}:{function}"]}
    if lora:
        tree["model"]["lora"] = {"r": 4, "lora_alpha": 8}
    return runs.write(folder, tree, output)


def _state(output: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(output / "checkpoint-8" / "optimizer.pt", weights_only=True)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_killed_and_resumed_is_the_uninterrupted_run_bit_for_bit(tmp_path: Path, lora: bool) -> None:
    folder = runs.workshop(tmp_path)
    (folder / "reward.py").write_text(KILLING)
    whole = runs.launch(_recipe(folder, "whole", "digits", lora))
    assert whole.returncode == 0, whole.stderr[-3000:]
    path = _recipe(folder, "killed", "killing", lora)
    killed = runs.launch(path)
    assert killed.returncode != 0 and (folder / "was-killed").exists()
    assert not (folder / "killed" / "final").exists()
    torn = folder / "killed" / "checkpoint-6"  # what a kill in the middle of a save leaves behind
    shutil.copytree(folder / "killed" / "checkpoint-4", torn)
    (torn / "trainer_state.json").write_text('{"global_step": 6, "log_his')
    resumed = runs.launch(path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "from update 4" in resumed.stderr

    expected, got = runs.weights(folder / "whole"), runs.weights(folder / "killed")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    whole_state, killed_state = (_state(folder / name)["state"].values() for name in ("whole", "killed"))
    for wanted, found in zip(whole_state, killed_state, strict=True):
        assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    rename = lambda line: {k.replace("killing", "digits"): v for k, v in line.items()}  # noqa: E731
    assert [rename(line) for line in runs.metrics(folder / "killed")] == runs.metrics(folder / "whole")


@pytest.mark.slow
def test_a_full_disk_costs_one_clear_line_and_no_checkpoint(tmp_path: Path) -> None:
    folder = runs.workshop(tmp_path)
    (folder / "reward.py").write_text(FILLING)
    path = _recipe(folder, "filled_run", "filling", lora=False)
    full = runs.launch(path)
    assert full.returncode != 0
    (line,) = [line for line in full.stderr.splitlines() if "could not write" in line and not line.startswith(" ")]
    assert "the last whole checkpoint is" in line and "checkpoint-4" in line and "run the same command again" in line
    before = {file.name: file.read_bytes() for file in (folder / "filled_run" / "checkpoint-4").iterdir()}
    assert json.loads(before["trainer_state.json"])["global_step"] == 4
    resumed = runs.launch(path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert [line["update"] for line in runs.metrics(folder / "filled_run")] == list(range(1, 9))
    whole = runs.launch(_recipe(folder, "whole", "digits", lora=False))
    assert whole.returncode == 0
    expected, got = runs.weights(folder / "whole"), runs.weights(folder / "filled_run")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.slow
def test_another_recipe_does_not_write_into_a_runs_folder(tmp_path: Path) -> None:
    import dllm_rl
    from dllm_rl.errors import CheckpointError, RecipeError

    folder = runs.workshop(tmp_path)
    tree = runs.recipe(folder, {"type": "sft"}, "run", max_steps=2, save_steps=1)
    dllm_rl.train(tree)
    with pytest.raises(RecipeError, match=r"holds another run \(algorithm.num_draws is 1 there, 3 here\)"):
        dllm_rl.train({**tree, "algorithm": {"type": "sft", "num_draws": 3}})
    longer = dllm_rl.train(tree, ["train.max_steps=3"])
    assert [line["update"] for line in longer.metrics] == [1, 2, 3]
    with pytest.raises(CheckpointError, match="is not a whole checkpoint: there is no such folder"):
        dllm_rl.train(tree, [f"train.resume_from_checkpoint={folder / 'nowhere'}"])
    with pytest.raises(CheckpointError, match="holds full weights, the recipe trains an adapter"):
        dllm_rl.train(
            {**tree, "output": str(folder / "other"), "model": {**tree["model"], "lora": {"r": 2}}},
            [f"train.resume_from_checkpoint={folder / 'run' / 'checkpoint-2'}"],
        )
