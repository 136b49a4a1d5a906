"""Traces of rollouts whose steps a schedule policy planned: all it decided is in the file, likelihood and all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from dllm_rl.diffusion.ledger import gaussian_logp
from dllm_rl.diffusion.likelihood import score_views
from dllm_rl.diffusion.replay import replay
from dllm_rl.diffusion.schedule import ScheduleTrace
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import DataError
from dllm_rl.models.policy_head import attach_head
from dllm_rl.rng import sample_keys
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.replay import replay_page
from dllm_rl.rollouts.trace import Trace
from dllm_rl.rollouts.trace_file import read_trace, write_trace
from dllm_rl.samplers.generate import generate
from dllm_rl.samplers.names import FEATURES
from tests.rollouts.test_trace import assert_same
from tests.rollouts.traces import trace
from tests.samplers.schedules import EXPLORING, explorer, probability_from_scratch

Content = dict[str, Any]


def planned(way: Content) -> Trajectory:
    return generate(explorer(way), [[1], [2, 0], []], sampler="schedule", gen_length=4, temperature=0.7, **way)


def written(made: Trajectory, **sampler: Any) -> Trace:
    whole = trace(made, texts={token: str(token) for token in range(4)})
    return whole.model_copy(update={"sampler": whole.sampler.model_copy(update={"name": "schedule", **sampler})})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    way = EXPLORING[1]
    write_trace(tmp_path / "trace.json", written(planned(way), options={"learned": way["learned"], "sigma": 0.6}))
    return tmp_path / "trace.json"


@pytest.mark.parametrize("way", EXPLORING, ids=str)
def test_the_likelihood_is_recomputed_from_the_file_alone(tmp_path: Path, way: Content) -> None:
    """Every draw, choice and action, from what the file holds and the model."""
    made = planned(way)
    write_trace(tmp_path / "trace.json", written(made))
    back = read_trace(tmp_path / "trace.json").trajectory()
    assert_same_schedule(made.schedule, back.schedule)
    again = [probability_from_scratch(back, row, explorer(way), way, 0.7) for row in range(len(back))]
    torch.testing.assert_close(made.behaviour_logp.tolist(), again, rtol=0, atol=1e-10)


def test_a_real_network_and_its_head_give_the_likelihood_again(tiny, tmp_path: Path) -> None:
    """From the file: tokens at their step's temperature and guidance, and actions around what the head says."""
    attach_head(tiny.network, {"type": "schedule", "features": len(FEATURES), "actions": 3})
    with torch.no_grad():
        for parameter in tiny.network.schedule.parameters():
            parameter += 0.01
    settings = RolloutSettings(
        sampler="schedule",
        gen_length=8,
        steps=4,
        temperature=0.8,
        cfg_scale=0.5,
        options={"learned": "commit temperature cfg_scale", "sigma": 0.9},
    )
    prompts, keys = [[1, 2], [], [3]], sample_keys(1, torch.arange(3))
    made = LocalEngine(tiny, settings, batch_size=2).generate(prompts, keys)
    texts = {token: str(token) for token in range(tiny.spec.mask_id + 1)}
    write_trace(tmp_path / "trace.json", trace(made, texts=texts))
    back = read_trace(tmp_path / "trace.json").trajectory()
    assert_same_schedule(made.schedule, back.schedule)
    assert back.schedule is not None
    assert len(set(back.nfe)) > 1, "one row is filled with zeros"
    found = replay(back, back.sequences())
    scores = score_views(
        tiny, back.sequences(), found.views, views_per_forward=64, transform=back.transform
    ).logp.double()
    tokens = torch.zeros(3, dtype=torch.float64).index_add(0, found.views.row, scores.sum(-1))
    mean = torch.stack([tiny.schedule_at(row).double() for row in back.schedule.features])
    living = torch.arange(back.num_steps) < torch.tensor(back.nfe)[:, None]
    actions = gaussian_logp(back.schedule.action, mean, back.schedule.sigma).masked_fill(~living, 0.0).sum(1)
    again = tokens + actions + back.selection_logp.sum(1)
    torch.testing.assert_close(again.detach(), made.behaviour_logp, rtol=0, atol=1e-4)


def assert_same_schedule(one: ScheduleTrace | None, other: ScheduleTrace | None) -> None:
    assert one is not None and other is not None
    for part in fields(ScheduleTrace):
        left, right = getattr(one, part.name), getattr(other, part.name)
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype and torch.equal(left, right), part.name
        else:
            assert left == right, part.name


def test_a_page_shows_no_decisions_but_the_rollout(file: Path) -> None:
    assert "features" not in replay_page(read_trace(file))


def test_a_file_of_version_1_is_read(tmp_path: Path, file: Path) -> None:
    """It has no decisions; the rest is the same. Where actions were drawn, their density is lost with them."""
    unplanned = generate(explorer(EXPLORING[0]), [[1], []], sampler="rl", gen_length=4, temperature=1.0)
    old = as_version_1(trace(unplanned, texts={token: str(token) for token in range(4)}).model_dump())
    (tmp_path / "old.json").write_text(json.dumps(old))
    back = read_trace(tmp_path / "old.json")
    assert back.version == 2
    assert_same(back.trajectory(), unplanned)
    (tmp_path / "old.json").write_text(json.dumps(as_version_1(json.loads(file.read_text()))))
    with pytest.raises(DataError, match="version 1 did not keep what a schedule policy decided"):
        read_trace(tmp_path / "old.json")


def as_version_1(content: Content) -> Content:
    """What version 1 wrote."""
    rows = [{name: value for name, value in row.items() if name != "decisions"} for row in content["rows"]]
    return {name: value for name, value in content.items() if name != "schedule"} | {"rows": rows, "version": 1}


SPOILT: list[tuple[Callable[[Content], object], str]] = [
    (lambda c: c["rows"][1].update(decisions=None), "rows[1].decisions is missing; every row has it"),
    (lambda c: c["rows"][0].update(decisions=None), "rows[0].decisions is missing; every row has it"),
    (lambda c: c.update(schedule=None), "rows[0].decisions is there; every row has it"),
    (lambda c: c["rows"][1]["decisions"]["commit"].pop(), "rows[1].decisions.commit does not have the"),
    (lambda c: c["rows"][1]["decisions"]["action"][0].pop(), "rows[1].decisions.action does not have 2 numbers"),
    (lambda c: c["rows"][1]["decisions"]["features"][1].pop(), "rows[1].decisions.features does not have 15 numbers"),
    (lambda c: c["rows"][2]["decisions"].update(temperature=None), "rows[2].decisions.temperature is missing"),
    (lambda c: c["rows"][2]["decisions"].update(cfg_scale=c["rows"][2]["decisions"]["logp"]), "cfg_scale is there"),
    (lambda c: c["rows"][0]["decisions"]["logp"].__setitem__(0, -9.0), "rows[0].behaviour_logp is"),
    (lambda c: c["schedule"].update(sigma=-1.0), "schedule.sigma is -1.0"),
]


@pytest.mark.parametrize(("change", "message"), SPOILT, ids=[message for _, message in SPOILT])
def test_a_spoilt_trace_is_refused(file: Path, change: Callable[[Content], object], message: str) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(DataError) as refused:
        read_trace(file)
    assert message in str(refused.value)
