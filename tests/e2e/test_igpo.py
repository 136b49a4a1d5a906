"""IGPO with weights spread over processes: groups fail on one of them and not on the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e import runs

ZERO_3 = {
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,  # else weights as small as these are whole on every process
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}


@pytest.mark.slow
def test_processes_that_share_weights_may_differ_in_how_many_groups_fail(tmp_path: Path) -> None:
    """Under ZeRO-3 every forward gathers weights from all: one more on one process alone would wait for ever."""
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    folder = runs.workshop(tmp_path)
    algorithm = {"type": "igpo", "updates_per_rollout": 2, "entropy_share": 0.5, "hints": runs.HINTS}
    tree = runs.recipe(folder, algorithm, "spread", max_steps=4, per_device_train_batch_size=2)
    tree["rollout"] |= {"num_generations": 4, "batch_size": 3}
    path = runs.write(folder, tree)
    (folder / "zero3.json").write_text(json.dumps(ZERO_3))
    launcher = ["--use_deepspeed", "--deepspeed_config_file", str(folder / "zero3.json")]
    launcher += ["--num_processes", "2", "--num_machines", "1", "--dynamo_backend", "no"]
    done = runs.launch(path, launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    judged = [len((folder / f"rollouts-{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert judged[0] != judged[1], f"the processes should differ: {judged}"
    alone = runs.launch(path, f"output={folder / 'one'}", "train.per_device_train_batch_size=4")
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert runs.distance(runs.weights(folder / "one"), runs.weights(folder / "spread")) <= 1e-5
