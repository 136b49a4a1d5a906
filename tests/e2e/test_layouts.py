"""One run, whatever the processes, accumulation and micro-batches it is spread over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import runs

ALGORITHMS: dict[str, dict[str, Any]] = {
    "sft": {"type": "sft", "num_draws": 2, "reduction": "token"},
    "vrpo": {"type": "vrpo", "num_draws": 3},
    "diffu_grpo": {"type": "diffu_grpo"},
    "diffu_grpo_shared": {"type": "diffu_grpo", "draws_for": "group", "updates_per_rollout": 5},
    "diffu_grpo_reuse": {
        "type": "diffu_grpo",
        "updates_per_rollout": 5,
        "num_draws": 3,
        "corruption": {"type": "fixed_count"},
        "ratio_level": "sequence",
    },
    "mask_grpo": {"type": "mask_grpo", "updates_per_rollout": 5, "ratio_level": "sequence", "reduction": "token"},
    "cj_grpo": {"type": "cj_grpo", "updates_per_rollout": 5, "reduction": "token"},
    "mdpo": {"type": "mdpo", "updates_per_rollout": 5, "kept_steps": 2},
    "igpo": {"type": "igpo", "updates_per_rollout": 5, "entropy_share": 0.5, "hints": runs.HINTS},
    "dultra": {"type": "dultra", "updates_per_rollout": 5},
}
LAYOUTS = {  # processes, accumulation, prompts per micro-batch; views per forward
    "1x1x4": (1, 1, 4, 8),
    "1x2x2": (1, 2, 2, 3),
    "1x4x1": (1, 4, 1, 100),
    "2x1x2": (2, 1, 2, 5),
    "2x2x1": (2, 2, 1, 8),
}


def _train(folder: Path, layout: str) -> None:
    processes, accumulation, per_device, views = LAYOUTS[layout]
    paths = []
    for name, algorithm in ALGORITHMS.items():
        tree = runs.recipe(
            folder,
            algorithm,
            f"{layout}-{name}",
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=per_device,
            views_per_forward=views,
            save_strategy="no",
        )
        if "reward" in tree:  # every run keeps its own record of rollouts
            reward = folder / f"{layout}-{name}-reward"
            reward.mkdir()
            (reward / "reward.py").write_text(runs.REWARD)
            tree["reward"]["functions"] = [f"{reward / 'reward.py'}:digits"]
        paths.append(str(runs.write(folder, tree, f"{layout}-{name}")))
    launcher = runs.TWO_PROCESSES if processes == 2 else runs.ONE_PROCESS
    done = runs.run([*runs.ACCELERATE, *launcher, "-m", "tests.e2e.train_each", *paths])
    assert done.returncode == 0, done.stderr[-3000:]


def _rollouts(folder: Path) -> list[str]:
    return sorted(line for file in folder.glob("rollouts-*.jsonl") for line in file.read_text().splitlines())


@pytest.mark.slow
def test_five_layouts_give_the_same_rollouts_and_parameters(tmp_path: Path) -> None:
    folder = runs.workshop(tmp_path)
    for layout in LAYOUTS:
        _train(folder, layout)
    first, *others = LAYOUTS
    for name in ALGORITHMS:
        expected = runs.weights(folder / f"{first}-{name}")
        start = runs.weights_of_model(folder / "model")
        assert runs.distance(start, {part: expected[part] for part in start}) > 1e-3, (
            "nothing was learned, so nothing was compared"
        )
        for layout in others:
            if (folder / f"{layout}-{name}-reward").is_dir():
                written = _rollouts(folder / f"{layout}-{name}-reward")
                assert written == _rollouts(folder / f"{first}-{name}-reward") and written
                assert all(1 <= len(json.loads(line)[1]) <= 8 for line in written)
            apart = runs.distance(expected, runs.weights(folder / f"{layout}-{name}"))
            print(f"{name} {layout}: relative L2 {apart:.2e}")
            assert apart <= 1e-6, (name, layout, apart)
            for wanted, found in zip(*(runs.metrics(folder / f"{o}-{name}") for o in (first, layout)), strict=True):
                assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6), (name, layout)
