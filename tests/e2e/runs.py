"""Small real runs: a tiny model on disk, rows, a reward file, a recipe, and the command line that trains it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from dllm_rl.samplers.names import FEATURES
from dllm_rl.toys.model import tiny_llada

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable
ACCELERATE = [str(Path(PYTHON).parent / "accelerate"), "launch"]
ONE_PROCESS = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
TWO_PROCESSES = ["--config_file", str(ROOT / "recipes/accelerate/ddp_cpu.yaml")]

HINTS = {
    "reference_column": "rejected",
    "answer_column": "completion",
    "unstripped": "keep",
    "min_chunk": 1,
    "max_chunk": 2,
    "min_share": 0.5,
    "max_share": 1.0,
    "correct_value": 0.25,
}
"""Over the workshop's rows and reward: about half of the groups fail, and hints help."""

REWARD = '''
import json, os, pathlib
HERE = pathlib.Path(__file__).parent

def digits(prompts, completions, completion_ids, **columns):
    """Share of digits, so that a random model gets different rewards."""
    with open(HERE / f"rollouts-{os.environ.get('RANK', '0')}.jsonl", "a") as file:
        for prompt, ids in zip(prompts, completion_ids, strict=True):
            file.write(json.dumps([prompt, list(ids)]) + "\\n")
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [sum(c.isdigit() for c in text) / 8 for text in texts]
'''


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}


def workshop(folder: Path) -> Path:
    """A folder with a model, rows and a reward function."""
    tiny_llada(seed=0, hidden=32, mlp=64, max_positions=64).save(folder / "model")
    rows = [
        {"prompt": f"{a}+{b}=", "completion": f"{a + b}", "chosen": f"{a + b}", "rejected": f"{a + b + 1}, no"}
        for a in range(4)
        for b in range(4)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "reward.py").write_text(REWARD)
    return folder


def recipe(folder: Path, algorithm: dict[str, Any], output: str, **train: Any) -> dict[str, Any]:
    """A recipe over the workshop's files. Prompts an update: 4."""
    tree: dict[str, Any] = {
        "algorithm": algorithm,
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"path": str(folder / "rows.jsonl")},
        "train": {"max_steps": 5, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "save_steps": 2, **train},
        "output": str(folder / output),
    }
    if algorithm["type"] not in ("sft", "vrpo"):
        tree["reward"] = {"functions": [f"{folder / 'reward.py'}:digits"]}
        tree["rollout"] = {"num_generations": 4, "gen_length": 8, "steps": 4}
    if algorithm["type"] == "planner_imitation":
        tree["model"]["head"] = {"type": "planner"}
        tree["rollout"] = {"num_generations": 4, "gen_length": 8, "block_length": 4, "sampler": "threshold"}
        del tree["reward"]
    if algorithm["type"] == "co_grpo":
        tree["model"]["head"] = {"type": "schedule", "features": len(FEATURES), "actions": 2}
        tree["rollout"] |= {"sampler": "schedule", "options": {"learned": "commit temperature", "sigma": 0.6}}
    if algorithm["type"] == "dultra":
        tree["model"]["head"] = {"type": "planner"}
        tree["rollout"] = {"num_generations": 4, "gen_length": 8, "block_length": 4, "sampler": "planner"}
    return tree


def write(folder: Path, tree: dict[str, Any], name: str = "recipe") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text("---\n" + json.dumps(tree))
    return path


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=900, check=False, **options
    )


def launch(recipe_path: Path, *overrides: str, launcher: list[str] = ONE_PROCESS) -> subprocess.CompletedProcess[str]:
    return run([*ACCELERATE, *launcher, str(recipe_path), *overrides])


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Trained weights of a run."""
    from safetensors.torch import load_file

    (file,) = sorted((output / "final").glob("*model.safetensors"))
    return load_file(file)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Relative L2 distance of all parameters."""
    assert a.keys() == b.keys()
    difference = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)
    return float((difference / sum(float(a[name].double().square().sum()) for name in a)) ** 0.5)


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights_of_model(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
