"""A run that is killed, stopped or out of disk goes on from its last whole checkpoint as if nothing had happened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e import runs

GRPO: dict[str, Any] = {"type": "diffu_grpo", "updates_per_rollout": 2}

# Each acts once, in the third rollout of the first attempt: after update 4, with checkpoint-2 and checkpoint-4 on disk.
ACTING = (
    runs.REWARD
    + """
def once(name):
    calls, done = HERE / f"{name}-calls", HERE / f"{name}-done"
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    if len(calls.read_text()) < 3 or done.exists():
        return False
    done.touch()
    return True

def killing(prompts, completions, completion_ids, **columns):
    import signal
    if once("killing"):
        os.kill(os.getpid(), signal.SIGKILL)
    return digits(prompts, completions, completion_ids, **columns)

def stopping(prompts, completions, completion_ids, **columns):
    import signal
    if once("stopping"):
        os.kill(os.getpid(), signal.SIGTERM)
    return digits(prompts, completions, completion_ids, **columns)

def filling(prompts, completions, completion_ids, **columns):
    import resource  # leaves room for small files only: checkpoint-6 cannot be written
    if once("filling"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return digits(prompts, completions, completion_ids, **columns)
"""
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workshop with an undisturbed run in `whole`."""
    folder = runs.workshop(tmp_path_factory.mktemp("resume"))
    (folder / "reward.py").write_text(ACTING)
    done = runs.launch(_recipe(folder, "whole", "digits"))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def _recipe(folder: Path, output: str, function: str) -> Path:
    tree = runs.recipe(folder, GRPO, output, max_steps=8, save_steps=2)
    tree["reward"] = {"functions": [f"{folder / 'reward.py'}:{function}"]}
    return runs.write(folder, tree, output)


def _assert_as_undisturbed(shop: Path, output: str, function: str) -> None:
    """Bit for bit: weights, optimiser and metrics."""
    expected, got = runs.weights(shop / "whole"), runs.weights(shop / output)
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)
    wanted, found = (
        torch.load(shop / name / "checkpoint-8" / "optimizer.pt", weights_only=True)["state"].values()
        for name in ("whole", output)
    )
    for one, other in zip(wanted, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    renamed = [{k.replace(function, "digits"): v for k, v in line.items()} for line in runs.metrics(shop / output)]
    assert renamed == runs.metrics(shop / "whole")


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
def test_torn_and_corrupt_checkpoints_are_named_and_the_one_before_is_used(shop: Path) -> None:
    path = _recipe(shop, "killed", "killing")
    killed = runs.launch(path)
    output = shop / "killed"
    assert killed.returncode != 0 and (shop / "killing-done").exists() and not (output / "final").exists()
    shutil.copytree(output / "checkpoint-4", output / "checkpoint-6")  # a kill in the middle of a save leaves this
    (output / "checkpoint-6" / "manifest.json").unlink()
    _flip_a_bit(output / "checkpoint-4" / "optimizer.pt")
    resumed = runs.launch(path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    said = [line for line in resumed.stderr.splitlines() if "is not whole" in line or "resuming" in line]
    assert said == [
        f"{output}/checkpoint-6 is not whole: it was never finished (no manifest.json); going on from checkpoint-2",
        f"{output}/checkpoint-4 is not whole: optimizer.pt is not what was written (its sha256 differs); going on from "
        "checkpoint-2",
        f"resuming {output} from update 2",
    ]
    assert sorted(part.name for part in output.glob("*checkpoint*")) == [
        "broken-checkpoint-4",
        *(f"checkpoint-{update}" for update in (2, 4, 6, 8)),
    ]
    _assert_as_undisturbed(shop, "killed", "killing")


@pytest.mark.slow
def test_a_signal_stops_a_run_at_the_end_of_a_window_with_a_code_and_one_line(shop: Path) -> None:
    path = _recipe(shop, "stopped", "stopping")
    command = [str(Path(runs.PYTHON).parent / "dllm-rl"), "run", str(path)]
    stopped = runs.run(command)
    output = shop / "stopped"
    assert stopped.returncode == 75, stopped.stderr[-3000:]
    lines = [line for line in stopped.stderr.splitlines() if "update/s" not in line and "shards" not in line]
    assert [line for line in lines if "SIGTERM" in line or "Traceback" in line] == [
        "SIGTERM: stopping at the end of this rollout's updates; once more to stop at once",
        f"dllm-rl: {output}: stopped by SIGTERM after update 6 of 8; checkpoint-6 is whole. Run the same command again "
        "to go on",
    ]
    assert not (output / "final").exists()
    resumed = runs.run(command)
    assert resumed.returncode == 0 and f"resuming {output} from update 6" in resumed.stderr
    _assert_as_undisturbed(shop, "stopped", "stopping")


@pytest.mark.slow
def test_a_full_disk_costs_one_clear_line_and_no_checkpoint(shop: Path) -> None:
    path = _recipe(shop, "filled", "filling")
    full = runs.launch(path)
    assert full.returncode != 0
    (line,) = [line for line in full.stderr.splitlines() if "could not" in line and not line.startswith(" ")]
    assert "the last whole checkpoint is" in line and "checkpoint-4" in line and "run the same command again" in line
    before = (shop / "filled" / "checkpoint-4" / "trainer_state.json").read_text()
    assert json.loads(before)["global_step"] == 4
    resumed = runs.launch(path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "from update 4" in resumed.stderr and "is not whole" not in resumed.stderr.replace("checkpoint-6", "")
    _assert_as_undisturbed(shop, "filled", "filling")


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_costs_one_line_and_nothing_whole(tmp_path: Path) -> None:
    import dllm_rl
    from dllm_rl.errors import CheckpointError
    from dllm_rl.training.manifest import problem_of

    folder = runs.workshop(tmp_path)
    tree = runs.recipe(folder, {"type": "sft"}, "run", max_steps=3, save_steps=1, save_total_limit=1)
    (folder / "run").mkdir()
    (folder / "run" / "checkpoint-2").touch()  # a file where a folder is to be
    with pytest.raises(CheckpointError, match="checkpoint-2 could not be written") as refused:
        dllm_rl.train(tree)
    assert "\n" not in str(refused.value)
    assert problem_of(folder / "run" / "checkpoint-1") is None and not (folder / "run" / "final").exists()


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
