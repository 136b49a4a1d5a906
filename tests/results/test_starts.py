"""Starting weights made again: the distance, and what the committed record says."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file

from dllm_rl.recipe.load import load_recipe
from results.starts import FILE, ROOT, SHIPPED, STARTS, distance


def weights(folder: Path, **parts: torch.Tensor) -> Path:
    folder.mkdir()
    save_file(parts, str(folder / "model.safetensors"))
    return folder


def test_the_distance_is_relative_and_zero_for_equal_weights_alone(tmp_path: Path) -> None:
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])
    one = weights(tmp_path / "one", a=a, b=b)
    assert distance(one, one) == 0.0
    assert math.isclose(distance(weights(tmp_path / "two", a=a, b=b + 0.5), one), 0.1)
    assert distance(weights(tmp_path / "three", a=a), one) == math.inf
    assert distance(weights(tmp_path / "four", a=a, b=b[0]), one) == math.inf
    least = torch.nextafter(b, torch.tensor(9.0))
    assert 0 < distance(weights(tmp_path / "five", a=a, b=least), one) < 1e-6


def test_every_shipped_start_has_the_recipes_that_make_it() -> None:
    assert set(STARTS) == {folder.name for folder in SHIPPED.iterdir()}
    for name, recipes in STARTS.items():
        text = (ROOT / f"recipes/{recipes[-1]}.yaml").read_text(encoding="utf-8")
        assert f"cp runs/{recipes[-1]}/final/* recipes/weights/{name}/" in text
        for before, after in pairwise(recipes):
            assert load_recipe(ROOT / f"recipes/{after}.yaml").model.path == f"runs/{before}"


def test_the_committed_record_is_of_shipped_starts_made_again_bit_for_bit() -> None:
    record = json.loads(FILE.read_text(encoding="utf-8"))
    assert record.keys() <= STARTS.keys()
    assert {each["relative_l2"] for each in record.values()} == {0.0}
