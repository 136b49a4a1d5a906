"""A planner from nothing: it imitates a teacher, is trained with its network, and then decodes, by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import dllm_rl
from dllm_rl.models.policy_head import is_head_parameter
from tests.e2e import runs

pytestmark = pytest.mark.slow
WEIGHTS = runs.ROOT / "recipes/weights/arithmetic"
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
SPEED = '''
def fewer(completions, completion_ids, **columns):
    """Something that differs between completions."""
    return [sum(ids) % 5 / 5 for ids in completion_ids]
'''


def chain(folder: Path, lora: dict[str, Any] | None) -> tuple[Path, Path]:
    """Recipes of both stages; the second starts from what the first saved."""
    (folder / "reward.py").write_text(SPEED)
    train = {"per_device_train_batch_size": 32, "views_per_forward": 256, "logging_steps": 5, "save_strategy": "no"}
    common = {"data": {"path": "toy:arithmetic", "options": {"count": 2000, "digits": 3}}}
    first = {
        **common,
        "algorithm": {"type": "planner_imitation"},
        "model": {"path": str(WEIGHTS), "dtype": "float32", "head": {"type": "planner"}, "lora": lora},
        "rollout": {"num_generations": 2, "gen_length": 5, "sampler": "threshold", "options": {"order": "max"}},
        "train": {**train, "max_steps": 60, "learning_rate": 1e-3, "warmup_steps": 5},
        "output": str(folder / "planner"),
    }
    second = {
        **common,
        "algorithm": {"type": "dultra"},
        "model": {"path": str(folder / "planner"), "dtype": "float32"},
        "reward": f"{folder / 'reward.py'}:fewer",
        "rollout": {"num_generations": 4, "gen_length": 5, "sampler": "planner", "temperature": 0.5},
        "train": {**train, "max_steps": 3, "learning_rate": 1e-3, "logging_steps": 1, "per_device_train_batch_size": 8},
        "eval": {"tasks": ["arithmetic"], "gen_length": 5, "limit": 100, "sampler": "planner"},
        "output": str(folder / "dultra"),
    }
    return runs.write(folder, first, "first"), runs.write(folder, second, "second")


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_from_a_teacher_to_a_planner_that_decodes(lora: dict[str, Any] | None, tmp_path: Path) -> None:
    recipes = chain(tmp_path, lora)
    done = runs.run([runs.PYTHON, "-m", "tests.e2e.train_each", *map(str, recipes)])
    assert done.returncode == 0, done.stderr[-3000:]

    lines = runs.metrics(tmp_path / "planner")
    assert lines[0]["planner/agreement"] < 0.6 < 0.85 < lines[-1]["planner/agreement"]
    assert lines[0]["planner/nll"] > 2.0 > 0.5 > lines[-1]["planner/nll"]
    start = dict(dllm_rl.load_model(WEIGHTS, dtype="float32").network.named_parameters())
    taught = dllm_rl.load_model(tmp_path / "planner", dtype="float32").network
    bare = taught.get_base_model() if lora else taught
    kept = {name.replace(".base_layer", ""): value for name, value in bare.named_parameters() if "lora_" not in name}
    assert all(torch.equal(kept[name], value) for name, value in start.items()), "imitation moved the network"
    assert any(is_head_parameter(name) for name in kept)

    lines = [line for line in runs.metrics(tmp_path / "dultra") if "loss" in line]
    for line in lines:
        assert line["policy/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert line["policy/clipped"] == 0.0
    way = ["--sampler", "planner", "--gen-length", "5", "--option", "planner_temperature=0.5"]
    said = runs.run([runs.PYTHON, "-m", "dllm_rl", "generate", str(tmp_path / "dultra"), "--prompt", "123+456=", *way])
    assert said.returncode == 0, said.stderr[-3000:]
    way[-1] = "mode=expected"
    trace = ["--trace", str(tmp_path / "trace.json")]
    said = runs.run(
        [runs.PYTHON, "-m", "dllm_rl", "generate", str(tmp_path / "dultra"), "--prompt", "123+456=", *way, *trace]
    )
    assert said.returncode == 0, said.stderr[-3000:]
    assert 1 <= json.loads((tmp_path / "trace.json").read_text())["rows"][0]["nfe"] < 5
    judged = runs.run(
        [runs.PYTHON, "-m", "dllm_rl", "eval", str(tmp_path / "dultra"), "--tasks", "arithmetic", "--limit", "50", *way]
    )
    assert judged.returncode == 0, judged.stderr[-3000:]
    assert "arithmetic" in judged.stdout


def test_processes_that_share_weights_may_differ_in_how_many_steps_a_planner_takes(tmp_path: Path) -> None:
    """Under ZeRO-3 every forward gathers the planner's weights too, and rollouts end when they end."""
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    folder = runs.workshop(tmp_path)
    never = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True} | {f"stage3_{name}": 0 for name in never}
    automatic = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    settings = {"zero_optimization": zero, "zero_allow_untested_optimizer": True, **dict.fromkeys(automatic, "auto")}
    (folder / "spread.json").write_text(json.dumps(settings))  # weights as few as these would stay gathered
    tree = runs.recipe(folder, {"type": "dultra"}, "spread", max_steps=3, per_device_train_batch_size=2)
    tree["model"]["head"]["initial_logit"] = 0.0
    tree["rollout"] |= {"num_generations": 2, "gen_length": 16, "block_length": 16}
    path = runs.write(folder, tree)
    launcher = ["--use_deepspeed", "--deepspeed_config_file", str(folder / "spread.json"), "--num_processes", "2"]
    done = runs.launch(path, launcher=[*launcher, "--num_machines", "1", "--dynamo_backend", "no"])
    assert done.returncode == 0, done.stderr[-3000:]
    alone = runs.launch(path, f"output={folder / 'one'}", "train.per_device_train_batch_size=4")
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert runs.distance(runs.weights(folder / "one"), runs.weights(folder / "spread")) <= 1e-5
