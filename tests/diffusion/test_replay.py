"""A rollout's views against the canvases that its sampler really showed the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from torch.nn.functional import pad

from dllm_rl.diffusion.likelihood import score_views
from dllm_rl.diffusion.replay import Replay, replay, replay_predictions
from dllm_rl.diffusion.trajectory import Events, Op, Trajectory
from dllm_rl.diffusion.transform import Transform
from dllm_rl.diffusion.views import Sequences
from dllm_rl.samplers.generate import generate
from tests.samplers.oracle import Table
from tests.samplers.schedules import drifting

WAYS = [
    {"sampler": "rl", "steps": 2},
    {"sampler": "llada", "steps": 4, "block_length": 2},
    {"sampler": "threshold", "threshold": 0.5, "temperature": 0.7},
    {"sampler": "rl", "cfg_scale": 0.5},
    {"sampler": "rl", "fixed": [[None, 1, None, None], [2, None, None, 0]]},
]
REVISING = [
    {"sampler": "rcr", "steps": 3},
    {"sampler": "rcr", "steps": 4, "block_length": 2, "mode": "cosine"},
    {"sampler": "remdm", "eta": 0.9, "mode": "rescale", "steps": 5},
    {"sampler": "t2t", "threshold": 0.4, "edit": 0.3},
]


def rolled_out(way: dict) -> tuple[Table, Trajectory, Replay]:  # type: ignore[type-arg]
    model = Table(seed=2, longest=6)
    out = generate(model, [[1, 2], [0]], gen_length=4, **{"temperature": 1.3, **way})
    return model, out, replay(out, out.sequences())


@pytest.mark.parametrize("way", [*WAYS, *REVISING], ids=str)
def test_scoring_the_views_gives_what_the_rollout_recorded(way: dict) -> None:  # type: ignore[type-arg]
    model, out, found = rolled_out(way)
    scores = score_views(model, out.sequences(), found.views, views_per_forward=3, transform=out.transform)
    torch.testing.assert_close(scores.logp, found.behaviour_logp, rtol=0, atol=1e-12)
    per_row = torch.zeros(2, dtype=torch.float64).index_add(0, found.views.row, found.behaviour_logp.sum(1))
    tokens = torch.zeros(2, dtype=torch.float64).index_add(0, out.events.row, out.events.logq)
    torch.testing.assert_close(per_row, tokens)


@pytest.mark.parametrize("way", [*WAYS, *REVISING], ids=str)
def test_predictions_are_scored_at_all_that_was_hidden(way: dict) -> None:  # type: ignore[type-arg]
    model = Table(seed=2, longest=6)
    out = generate(model, [[1, 2], [0]], gen_length=4, record_predictions=True, **{"temperature": 1.3, **way})
    row, step = torch.tensor([1, 0, 0]), torch.tensor([out.nfe[1], 1, 2])
    sequences = Sequences(*(pad(getattr(out.sequences(), part.name), (1, 0)) for part in fields(Sequences)))
    found = replay_predictions(out, sequences, row, step)
    for view, (one, at) in enumerate(zip(row.tolist(), step.tolist(), strict=True)):
        before = out.canvas(at - 1)[one]
        assert torch.equal(found.views.canvas[view, 1:], before)
        assert torch.equal(found.views.scored[view, 1:], out.sequences().completion[one] & (before == out.mask_id))
        assert torch.equal(found.views.tokens[view, -4:], out.predictions.tokens[one, at - 1])
    scores = score_views(model, sequences, found.views, views_per_forward=2, transform=out.transform)
    torch.testing.assert_close(scores.logp, found.behaviour_logp, rtol=0, atol=1e-12)
    assert torch.equal(found.views.weight, found.views.scored.double()) and torch.equal(found.views.row, row)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_view_is_the_canvas_before_its_step_scored_where_the_step_wrote(way: dict) -> None:  # type: ignore[type-arg]
    _, out, found = rolled_out(way)
    assert list(zip(found.views.row.tolist(), found.step.tolist(), strict=True)) == [
        (row, step) for row in range(2) for step in range(1, out.nfe[row] + 1)
    ]
    for view, (row, step) in enumerate(zip(found.views.row.tolist(), found.step.tolist(), strict=True)):
        before, after = out.canvas(step - 1)[row], out.canvas(step)[row]
        assert torch.equal(found.views.canvas[view], before)
        assert torch.equal(found.views.scored[view], before != after)
        assert torch.equal(found.views.tokens[view][before != after], after[before != after])
    assert torch.equal(found.views.weight, found.views.scored.double())


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_open_is_what_was_hidden_in_the_block_being_written(way: dict) -> None:  # type: ignore[type-arg]
    _, out, found = rolled_out(way)
    size = way.get("block_length", 4)
    assert found.open is not None
    for view, (row, step) in enumerate(zip(found.views.row.tolist(), found.step.tolist(), strict=True)):
        hidden = [i for i, token in enumerate(out.completion_canvas(step - 1)[row].tolist()) if token == out.mask_id]
        expected = [2 + i for i in hidden if i // size == hidden[0] // size]
        assert found.open[view].nonzero()[:, 0].tolist() == expected
        assert not (found.views.scored[view] & ~found.open[view]).any()
        assert found.selection_logp[view] == out.selection_logp[row, step - 1]


def test_open_is_not_known_where_the_log_does_not_tell() -> None:
    _, out, _ = rolled_out(WAYS[0])
    assert replay(replace(out, block_of=None), out.sequences()).open is None
    _, revised, found = rolled_out(REVISING[0])
    assert revised.block_of is not None and found.open is None


def test_every_token_drawn_is_scored_once_and_none_that_was_given() -> None:
    _, out, found = rolled_out(WAYS[-1])
    times = torch.zeros_like(out.sequences().tokens).index_add(0, found.views.row, found.views.scored.long())
    assert torch.equal(pad(~out.given, (2, 0)).long(), times)


def test_tokens_overwritten_later_are_scored_in_their_own_context() -> None:
    """Position 0: 2 written, hidden again, 1 written; position 1: 0 written, then changed to 2."""
    happened = [(1, 0, Op.WRITE, 2), (2, 1, Op.WRITE, 0), (2, 0, Op.REMASK, 3), (3, 0, Op.WRITE, 1), (3, 1, Op.EDIT, 2)]
    step, position, op, token = torch.tensor(happened).T
    logq = torch.tensor([-0.5, -0.25, 0.0, -1.0, 0.0], dtype=torch.float64)
    events = Events(torch.zeros_like(step), step, position, op, token, logq, logq, logq)
    out = Trajectory(
        prompts=[[7]],
        gen_length=2,
        events=events,
        selection_logp=torch.zeros(1, 3, dtype=torch.float64),
        nfe=[3],
        keys=torch.zeros(1, dtype=torch.int64),
        transform=Transform(),
        exactness="exact",
        mask_id=3,
        eos_ids=(),
        update=0,
    )
    found = replay(out, out.sequences())
    assert found.views.canvas.tolist() == [[7, 3, 3], [7, 2, 3], [7, 3, 0]]
    assert found.views.scored.nonzero().tolist() == [[0, 1], [1, 2], [2, 1]]
    assert found.views.tokens[found.views.scored].tolist() == [2, 0, 1]
    assert found.behaviour_logp[found.views.scored].tolist() == [-0.5, -0.25, -1.0]


@pytest.mark.parametrize("way", REVISING, ids=str)
def test_views_of_rules_that_revise_are_the_canvases_before_their_steps(way: dict) -> None:  # type: ignore[type-arg]
    _, out, found = rolled_out(way)
    assert bool((out.events.op == Op.REMASK).any() | (out.events.op == Op.EDIT).any())
    moments = list(zip(found.views.row.tolist(), found.step.tolist(), strict=True))
    drawn = (out.events.op == Op.WRITE).nonzero()[:, 0]
    writes = list(zip(out.events.row[drawn].tolist(), out.events.step[drawn].tolist(), strict=True))
    assert moments == sorted(set(writes))
    for view, (row, step) in enumerate(moments):
        assert torch.equal(found.views.canvas[view], out.canvas(step - 1)[row])
        assert int(found.views.scored[view].sum()) == writes.count((row, step))


def test_more_padding_on_the_left_moves_the_views() -> None:
    _, out, found = rolled_out(WAYS[0])
    narrow = out.sequences()
    wide = replace(
        narrow, **{name: pad(getattr(narrow, name), (3, 0)) for name in ("tokens", "attend", "completion", "scored")}
    )
    moved = replay(out, wide)
    for name in ("canvas", "scored", "weight", "tokens"):
        assert torch.equal(getattr(moved.views, name)[:, 3:], getattr(found.views, name))
    assert torch.equal(moved.behaviour_logp[:, 3:], found.behaviour_logp)


def test_rows_replay_alone_as_they_do_together() -> None:
    _, out, found = rolled_out(WAYS[2])

    def of(row: int) -> Iterator[tuple[list[int], float]]:
        for view in (found.views.row == row).nonzero()[:, 0]:
            yield found.views.canvas[view].tolist(), float(found.behaviour_logp[view].sum())

    for row in range(2):
        alone = replay(out.select([row]), out.sequences().select(torch.tensor([row])))
        assert list(of(row)) == [
            (canvas.tolist(), float(logp.sum()))
            for canvas, logp in zip(alone.views.canvas, alone.behaviour_logp, strict=True)
        ]


def test_what_a_schedule_decided_is_scored_with() -> None:
    model = drifting(actions=2)
    options = {"learned": "temperature cfg_scale", "cfg_scale": 0.5, "sigma": 0.8, "steps": 3}
    out = generate(model, [[1, 2], [0]], gen_length=4, sampler="schedule", temperature=1.3, **options)
    assert out.schedule is not None and out.schedule.temperature is not None and out.schedule.cfg_scale is not None
    found = replay(out, out.sequences())
    for part in ("temperature", "cfg_scale"):
        decided, of_views = getattr(out.schedule, part), getattr(found.views, part)
        expected = [decided[row, step - 1] for row, step in zip(found.views.row, found.step, strict=True)]
        assert torch.equal(of_views, torch.stack(expected)) and len(set(of_views.tolist())) > 2
    scores = score_views(model, out.sequences(), found.views, views_per_forward=3, transform=out.transform)
    torch.testing.assert_close(scores.logp, found.behaviour_logp, rtol=0, atol=1e-12)
