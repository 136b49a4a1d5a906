"""The doors a user comes in by, each with a real run behind it, and what wrong input meets there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e import runs

GRPO: dict[str, Any] = {"type": "diffu_grpo", "kl_coefficient": 0.0}
pytestmark = pytest.mark.slow


def _ranks(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("rollouts-*.jsonl"))


def test_literal_and_module_launches_are_one_run(tmp_path: Path) -> None:
    folder = runs.workshop(tmp_path)
    path = runs.write(folder, runs.recipe(folder, GRPO, "literal", max_steps=2))
    literal = runs.launch(path)
    assert literal.returncode == 0, literal.stderr[-3000:]
    assert "Done. Everything is in" in literal.stdout and "load_model" in literal.stdout
    module = runs.run([*runs.ACCELERATE, *runs.ONE_PROCESS, "-m", "dllm_rl", str(path), f"output={folder / 'module'}"])
    assert module.returncode == 0, module.stderr[-3000:]
    a, b = runs.weights(folder / "literal"), runs.weights(folder / "module")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (folder / "literal" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    folder = runs.workshop(tmp_path)
    path = runs.write(folder, runs.recipe(folder, GRPO, "two", max_steps=2, per_device_train_batch_size=2))
    done = runs.launch(path, launcher=runs.TWO_PROCESSES)
    assert done.returncode == 0, done.stderr[-3000:]
    assert _ranks(folder) == ["rollouts-0", "rollouts-1"]
    assert [line["update"] for line in runs.metrics(folder / "two")] == [1, 2]


def test_a_deepspeed_configuration_of_ones_own_spreads_even_small_weights(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    folder = runs.workshop(tmp_path)
    path = runs.write(folder, runs.recipe(folder, GRPO, "zero", max_steps=2, per_device_train_batch_size=2))
    never = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    zero |= {f"stage3_{name}": 0 for name in never}  # else weights as few as these would stay on every process
    automatic = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    settings = {"zero_optimization": zero, "zero_allow_untested_optimizer": True, **dict.fromkeys(automatic, "auto")}
    (folder / "zero.json").write_text(json.dumps(settings))
    launcher = ["--use_deepspeed", "--deepspeed_config_file", str(folder / "zero.json"), "--num_processes", "2"]
    done = runs.launch(path, launcher=[*launcher, "--num_machines", "1", "--dynamo_backend", "no"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert _ranks(folder) == ["rollouts-0", "rollouts-1"]
    alone = runs.launch(path, f"output={folder / 'one'}", "train.per_device_train_batch_size=4")
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert runs.distance(runs.weights(folder / "one"), runs.weights(folder / "zero")) <= 1e-5


def test_a_failing_reward_ends_the_run_with_one_line(tmp_path: Path) -> None:
    folder = runs.workshop(tmp_path)
    (folder / "bad.py").write_text(
        "def raises(completions, **columns):\n    return 1 / 0\n"
        "def nan(completions, **columns):\n    return [float('nan')] * len(completions)\n"
        "def short(completions, **columns):\n    return [1.0]\n"
        "def hangs(completions, **columns):\n    while True:\n        pass\n"
    )
    wanted = {
        "raises": "raised ZeroDivisionError",
        "nan": "nan",
        "short": "returned 1 values for 16 rows",
        "hangs": "did not return within 1 s",
    }
    for name, message in wanted.items():
        tree = runs.recipe(folder, GRPO, name)
        tree["reward"] = {"functions": [f"{folder / 'bad.py'}:{name}"], "time_limit": 1.0}
        done = runs.run([runs.PYTHON, str(runs.write(folder, tree, name))])
        assert done.returncode not in (0, None), name
        lines = [line for line in done.stderr.splitlines() if f"bad.{name}" in line]
        assert len(lines) == 1 and message in lines[0] and "update 1" in lines[0], (name, done.stderr[-2000:])
        assert "Traceback" not in done.stderr


def test_wrong_data_and_models_end_the_run_with_one_line(tmp_path: Path) -> None:
    folder = runs.workshop(tmp_path)
    (folder / "empty_prompt.jsonl").write_text(json.dumps({"prompt": "", "answer": "1"}))
    (folder / "no_prompt.jsonl").write_text(json.dumps({"question": "1+1", "answer": "2"}))
    (folder / "long.jsonl").write_text(json.dumps({"prompt": "1" * 60, "answer": "2"}))
    cases = {
        "data.path=nowhere.jsonl": "no file nowhere.jsonl",
        f"data.path={folder / 'empty_prompt.jsonl'}": "column 'prompt' is empty",
        f"data.path={folder / 'no_prompt.jsonl'}": "no column 'prompt'; it has answer, question",
        f"data.path={folder / 'long.jsonl'}": "need 68 positions, the model has 64",
        f"model.path={folder / 'nothing'}": "nothing",
        "algorithm.clip_hihg=0.2": "Did you mean clip_high?",
        "train.max_steps=many": "train.max_steps",
        "rollout.gen_length=0": "rollout.gen_length",
    }
    path = runs.write(folder, runs.recipe(folder, GRPO, "never"))
    script = folder / "each.py"
    script.write_text(
        "import sys, json\nfrom dllm_rl.cli import main\n"
        f"for override in {list(cases)!r}:\n"
        f"    print('###', override, file=sys.stderr, flush=True)\n"
        f"    code = main(['run', {str(path)!r}, override])\n"
        "    print('=== exit', code, file=sys.stderr, flush=True)\n"
    )
    done = runs.run([runs.PYTHON, str(script)])
    assert done.returncode == 0, done.stderr[-3000:]
    parts = done.stderr.split("### ")[1:]
    assert len(parts) == len(cases)
    for part, (override, message) in zip(parts, cases.items(), strict=True):
        assert message in part and "=== exit 2" in part, (override, part)
        assert "Traceback" not in part
    assert not (folder / "never" / "metrics.jsonl").exists()
