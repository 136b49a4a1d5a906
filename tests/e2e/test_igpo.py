"""IGPO with weights spread over processes: groups fail on one of them and not on the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import runs


@pytest.mark.slow
def test_processes_that_share_weights_may_differ_in_how_many_groups_fail(tmp_path: Path) -> None:
    """Under ZeRO-3 every forward gathers weights from all: one more on one process alone would wait for ever."""
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    folder = runs.workshop(tmp_path)
    algorithm = {"type": "igpo", "updates_per_rollout": 2, "entropy_share": 0.5, "hints": runs.HINTS}
    tree = runs.recipe(folder, algorithm, "spread", max_steps=4, per_device_train_batch_size=2)
    tree["rollout"] |= {"num_generations": 4, "batch_size": 3}
    path = runs.write(folder, tree)
    launcher = ["--use_deepspeed", "--zero_stage", "3", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--gradient_accumulation_steps", "1"]
    done = runs.launch(path, launcher=[*launcher, "--zero3_save_16bit_model", "true"])
    assert done.returncode == 0, done.stderr[-3000:]
    judged = [len((folder / f"rollouts-{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert judged[0] != judged[1], f"the processes should differ: {judged}"
    alone = runs.launch(path, f"output={folder / 'one'}", "train.per_device_train_batch_size=4")
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert runs.distance(runs.weights(folder / "one"), runs.weights(folder / "spread")) <= 1e-5
