"""The guard that stops a run when numbers go wrong: what it sees, whom it names, what it saves, and that nothing is
stepped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dllm_rl.algorithms import SFT
from dllm_rl.algorithms.base import Batch, Scores
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.diffusion.views import Views
from dllm_rl.errors import DivergenceError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.training.divergence import DivergenceGuard, Limits
from dllm_rl.training.source import Sample
from tests.training.test_trainer import TEXTS, _trainer

MASK = 9
SAMPLES = [Sample(f"p{row}", f"c{row}", reward=row / 4, advantage=row / 2) for row in range(4)]


def _batch(**known: Tensor | None) -> Batch:
    """Two sequences of a prompt and two tokens, with two views each, one token hidden on each."""
    sequences = sequences_from_ids([[1], [2]], [[3, 4], [5, 6]], 0, torch.device("cpu"))
    row = torch.tensor([0, 0, 1, 1])
    scored = torch.zeros(4, 3, dtype=torch.bool)
    scored[[0, 1, 2, 3], [1, 2, 1, 2]] = True
    canvas = sequences.tokens[row].masked_fill(scored, MASK)
    return Batch(sequences, Views(canvas, scored, scored.double() * 2, row), **known)  # type: ignore[arg-type]


def _scores(batch: Batch, **changes: float) -> Scores:
    """Scores in an order of their own; `v2=x`: x where view 2 is scored."""
    logp = batch.views.scored * -0.5
    for name, value in changes.items():
        view = int(name[1:])
        logp[view][batch.views.scored[view]] = value
    order = torch.tensor([3, 1, 0, 2])
    return Scores(logp[order], order)


def _guard(folder: Path, limits: Limits = Limits(), rank: int = 0) -> DivergenceGuard:  # noqa: B008
    return DivergenceGuard(folder, limits, rank, lambda ids: "".join(f"<{token}>" for token in ids))


def _alone(numbers: Tensor) -> Tensor:
    return numbers


def _lines(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.iterdir()
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_update_in_order_leaves_nothing(tmp_path: Path) -> None:
    guard = _guard(tmp_path / "diverged", Limits(grad_norm=2.0, log_ratio=1.0))
    for norm in (2.0, torch.tensor(0.0)):
        batch = _batch(behaviour_logp=torch.full((4, 3), -1.5), reference_logp=torch.full((4, 3), -3.0))
        guard.look(batch, _scores(batch), torch.tensor(0.5))
        guard.check(norm, 1, _alone, [])
    assert guard.seen == [] and not (tmp_path / "diverged").exists()


def test_what_is_not_scored_may_be_anything(tmp_path: Path) -> None:
    nowhere = torch.full((4, 3), math.nan)
    batch = _batch(behaviour_logp=nowhere.masked_fill(_batch().views.scored, -0.5), reference_logp=None)
    guard = _guard(tmp_path, Limits(log_ratio=0.1))
    guard.look(batch, _scores(batch), torch.tensor(0.0))
    guard.check(1.0, 1, _alone, [])


def test_the_row_at_fault_is_saved_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    guard = _guard(tmp_path, rank=3)
    fine = _batch(advantage=torch.tensor([1.0, -1.0]))
    guard.look(fine, _scores(fine), torch.tensor(0.0))
    batch = _batch(advantage=torch.tensor([0.5, -0.5]), behaviour_logp=torch.full((4, 3), -0.25))
    guard.look(batch, _scores(batch, v2=math.nan), torch.tensor(0.0))
    with pytest.raises(DivergenceError, match="update 7: a log-probability of the policy is not finite; the 1 rows.*"):
        guard.check(1.0, 7, _alone, SAMPLES)
    assert [file.name for file in tmp_path.iterdir()] == ["update-7-rank-3.jsonl"]
    (line,) = _lines(tmp_path)
    views = line.pop("views")
    assert line == {
        "update": 7,
        "rank": 3,
        "micro_batch": 1,
        "wrong": ["a log-probability of the policy is not finite"],
        "row": 1,
        "prompt": "<2>",
        "completion": "<5><6>",
        "prompt_ids": [2],
        "completion_ids": [5, 6],
        "reward": 0.75,
        "advantage": -0.5,
    }
    assert views == [
        {
            "canvas": canvas,
            "scored": scored,
            "weight": [2.0],
            "logp": logp,
            "behaviour_logp": [-0.25],
            "reference_logp": None,
        }
        for canvas, scored, logp in (([2, MASK, 6], [1], ["nan"]), ([2, 5, MASK], [2], [-0.5]))
    ]


@pytest.mark.parametrize(
    ("known", "loss", "norm", "limits", "said", "rows"),
    [
        ({}, math.inf, 1.0, Limits(), "the loss is not finite", [0, 1]),
        ({}, 0.0, math.nan, Limits(), "the gradient norm is not finite", [0, 1]),
        ({}, 0.0, torch.tensor(math.inf), Limits(), "the gradient norm is not finite", [0, 1]),
        ({}, 0.0, -1.0, Limits(), "the gradient norm is not finite", [0, 1]),
        ({}, 0.0, 2.5, Limits(grad_norm=2.0), "the gradient norm is above train.stop_at_grad_norm", [0, 1]),
        ({"advantage": [1.0, math.nan]}, 0.0, 1.0, Limits(), "an advantage is not finite", [1]),
        ({"behaviour_logp": -math.inf}, 0.0, 1.0, Limits(), "a log-probability of the rollout is not finite", [0]),
        ({"reference_logp": math.nan}, 0.0, 1.0, Limits(), "a log-probability of the reference is not finite", [0]),
        ({"behaviour_logp": -2.0}, 0.0, 1.0, Limits(log_ratio=1.4), "a log-ratio is above train.stop_at_log", [0]),
        ({"behaviour_logp": 1.0}, 0.0, 1.0, Limits(log_ratio=1.4), "a log-ratio is above train.stop_at_log", [0]),
    ],
)
def test_every_number_is_looked_at(
    known: dict[str, Any], loss: float, norm: Any, limits: Limits, said: str, rows: list[int], tmp_path: Path
) -> None:
    tensors = {}
    for name, value in known.items():
        if name == "advantage":
            tensors[name] = torch.tensor(value)
        else:
            tensors[name] = torch.full((4, 3), -0.5)
            tensors[name][1, 2] = value  # scored on view 1, of row 0
    guard, batch = _guard(tmp_path, limits), _batch(**tensors)
    guard.look(batch, _scores(batch), torch.tensor(loss))
    with pytest.raises(DivergenceError, match=f"update 2: {said}"):
        guard.check(norm, 2, _alone, [])
    assert [line["row"] for line in _lines(tmp_path)] == rows


def test_all_processes_stop_and_the_one_at_fault_saves(tmp_path: Path) -> None:
    guards = [_guard(tmp_path, rank=rank) for rank in range(2)]
    batch = _batch()
    for guard, logp in zip(guards, (-0.5, -math.inf), strict=True):
        guard.look(batch, _scores(batch, v0=logp), torch.tensor(0.0))
    total = sum(torch.stack([each.signs for each in guard.seen]).any(0).long() for guard in guards)
    assert isinstance(total, Tensor)
    with pytest.raises(DivergenceError, match="of the policy is not finite, on another rank, which saves the rows"):
        guards[0].check(1.0, 1, lambda mine: total, [])
    with pytest.raises(DivergenceError, match="the 1 rows at fault, .*update-1-rank-1.jsonl"):
        guards[1].check(1.0, 1, lambda mine: total, [])
    assert [line["row"] for line in _lines(tmp_path)] == [0]


def test_a_folder_that_cannot_be_written_does_not_hide_what_went_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    guard, batch = _guard(tmp_path / "file"), _batch()
    guard.look(batch, _scores(batch), torch.tensor(math.nan))
    with pytest.raises(DivergenceError, match="the loss is not finite; .* could not be written"):
        guard.check(1.0, 1, _alone, [])


def test_nothing_is_stepped_when_a_run_diverges(tiny: DiffusionModel, tmp_path: Path) -> None:
    trainer = _trainer(tiny, SFT(), TEXTS, tmp_path)
    trainer.divergence.limits = Limits(grad_norm=1e-9)
    before = {name: weight.clone() for name, weight in tiny.network.named_parameters()}
    with pytest.raises(DivergenceError, match="1: the gradient norm is above train.stop_at_grad_norm; the 4 row"):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in tiny.network.named_parameters())
    lines = _lines(tmp_path / "diverged")
    assert sorted(line["prompt_ids"][0] for line in lines) == [40, 41, 42, 43]
    assert all(line["completion_ids"][1:] == [51, 97] and line["views"] for line in lines)
