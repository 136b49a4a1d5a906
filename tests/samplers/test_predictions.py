"""One-step completions: recording them leaves the rollout as it is, and they are what the network said at each step."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import torch

from dllm_rl import rng
from dllm_rl.diffusion.trajectory import Events, Op, Trajectory
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.generate import begin, generate, trajectory
from dllm_rl.samplers.loop import advance, run
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.toys.families import tiny_llada2
from tests.samplers.oracle import Table, total_variation

WAYS: list[dict[str, Any]] = [
    {"sampler": "rl", "steps": 2},
    {"sampler": "rl", "steps": 4, "block_length": 2},
    {"sampler": "llada", "steps": 2, "cfg_scale": 0.5},
    {"sampler": "llada", "steps": 4, "block_length": 2, "remasking": "random"},
    {"sampler": "rcr", "steps": 3},
    {"sampler": "rcr", "steps": 4, "block_length": 2},
    {"sampler": "threshold", "threshold": 0.5},
    {"sampler": "entropy", "fixed": [[None, 1, None, None], [2, None, None, 0]] * 4},
    {"sampler": "remdm", "eta": 0.9, "mode": "rescale", "steps": 5},
    {"sampler": "t2t", "threshold": 0.4, "edit": 0.8, "block_length": 2},
    {"sampler": "wino", "block_length": 2},
]
each_way = pytest.mark.parametrize("way", range(len(WAYS)), ids=lambda index: str(WAYS[index]))


@cache
def rolled_out(way: int, record: bool = True) -> tuple[Table, Trajectory]:
    return generated(WAYS[way], record)


def generated(way: dict[str, Any], record: bool = True) -> tuple[Table, Trajectory]:
    model = Table(seed=2, longest=6)
    settings = {"temperature": 1.3, "gen_length": 4, "record_predictions": record, **way}
    return model, generate(model, [[1, 2], [0]] * 4, **settings)


@each_way
def test_recording_leaves_the_rollout_bit_for_bit_as_it_is(way: int) -> None:
    (plain_model, plain), (model, out) = rolled_out(way, False), rolled_out(way)
    assert plain.predictions is None
    for part in fields(Events):
        torch.testing.assert_close(
            getattr(out.events, part.name), getattr(plain.events, part.name), rtol=0, atol=0, equal_nan=True
        )
    assert torch.equal(out.selection_logp, plain.selection_logp)
    assert (out.nfe, out.exactness) == (plain.nfe, plain.exactness)
    assert len(model.seen) == len(plain_model.seen), "recording costs no forward"


@each_way
def test_where_a_step_wrote_its_prediction_is_what_was_drawn(way: int) -> None:
    _, out = rolled_out(way)
    events = out.events.select((out.events.op == Op.WRITE).nonzero()[:, 0])
    cell = (events.row, events.step - 1, events.position)
    assert torch.equal(out.predictions.tokens[cell], events.token)
    assert torch.equal(out.predictions.logq[cell], events.logq)


@each_way
def test_a_prediction_is_the_canvas_before_the_step_and_a_draw_at_every_hidden_position(way: int) -> None:
    model, out = rolled_out(way)
    assert out.predictions.tokens.shape == out.predictions.logq.shape == (8, out.num_steps, 4)
    beyond = 0
    for step in range(out.num_steps):
        before = out.completion_canvas(step)
        hidden = before == out.mask_id
        tokens, logq = out.predictions.tokens[:, step], out.predictions.logq[:, step]
        assert torch.equal(tokens[~hidden], before[~hidden])
        assert not (tokens == out.mask_id).any()
        canvas, drawn = out.canvas(step), torch.cat([out.canvas(step)[:, :2], tokens], dim=1)
        sequences = out.sequences()
        where = torch.cat([torch.zeros(8, 2, dtype=torch.bool), hidden], dim=1)
        scores = model.score(canvas, drawn, where, sequences.attend, out.transform, prompt=sequences.prompt)
        torch.testing.assert_close(logq, scores.logp[:, 2:], rtol=0, atol=1e-12)
        beyond += int((hidden & (torch.arange(4) >= 2)).sum()) if step == 0 else 0
    assert beyond > 0, "later blocks are predicted too"


def test_a_row_that_has_finished_keeps_its_completion() -> None:
    _, out = rolled_out(6)
    early = [row for row, forwards in enumerate(out.nfe) if forwards < out.num_steps]
    assert early
    for row in early:
        after = out.predictions.tokens[row, out.nfe[row] :]
        assert torch.equal(after, out.tokens[row].expand_as(after))
        assert not out.predictions.logq[row, out.nfe[row] :].any()


def test_greedy_predictions_are_the_likeliest_tokens_without_a_probability() -> None:
    model, out = generated({"sampler": "llada", "steps": 2, "temperature": 0.0})
    sequences = out.sequences()
    for step in range(2):
        logits = model.logits(out.canvas(step), sequences.attend)[:, 2:, : out.mask_id]
        hidden = out.completion_canvas(step) == out.mask_id
        assert torch.equal(out.predictions.tokens[:, step][hidden], logits.argmax(-1)[hidden])
        assert out.predictions.logq[:, step][hidden].isnan().all()
        assert not out.predictions.logq[:, step][~hidden].any()


@pytest.mark.parametrize("sampler", ["rl", "llada"])
def test_what_is_not_written_is_drawn_by_itself(sampler: str) -> None:
    """The first step's prediction of three positions, two of them in blocks that are not open: independent draws."""
    model, many = Table(seed=5, longest=4), 6000
    settings = {"gen_length": 3, "block_length": 1, "temperature": 1.0, "record_predictions": True}
    out = generate(model, [[1]] * many, sampler=sampler, **settings)
    q = out.transform.log_probs(model.logits(out.canvas(0)[:1])[0, 1:]).exp()
    law = {(a, b, c): float(q[0, a] * q[1, b] * q[2, c]) for a in range(3) for b in range(3) for c in range(3)}
    found = Counter(map(tuple, out.predictions.tokens[:, 0].tolist()))
    assert total_variation(law, {key: count / many for key, count in found.items()}) < 0.025
    again = (out.predictions.tokens[:, 0, 2] == out.predictions.tokens[:, 1, 2]).double().mean()
    assert 0.1 < again < 0.9, "every step draws anew"


def test_rows_are_selected_and_joined_with_their_predictions() -> None:
    _, out = rolled_out(6)
    longest = out.nfe.index(out.num_steps)
    short = next(row for row, forwards in enumerate(out.nfe) if forwards < out.num_steps)
    parts = [out.select([longest]), cut(out.select([short]), out.nfe[short])]
    joined = Trajectory.concatenate(parts)
    for name in ("tokens", "logq"):
        assert torch.equal(getattr(joined.predictions, name), getattr(out.predictions, name)[[longest, short]])
    assert Trajectory.concatenate([parts[0], replace(parts[1], predictions=None)]).predictions is None


def cut(out: Trajectory, steps: int) -> Trajectory:
    """Without the columns of steps that no row took."""
    assert out.predictions is not None
    kept = replace(out.predictions, tokens=out.predictions.tokens[:, :steps], logq=out.predictions.logq[:, :steps])
    return replace(out, selection_logp=out.selection_logp[:, :steps], predictions=kept)


def test_forks_share_the_past_and_differ_after_it() -> None:
    model, prompts = Table(seed=2, longest=6), [[1, 2], [0]]
    request = Request(gen_length=4, temperature=1.3)
    sampler = replace(make_sampler(model.spec, "rl", {}, request), record_predictions=True)
    state = advance(begin(model, prompts, sampler, rng.sample_keys(0, torch.arange(2))), sampler, model.spec.mask_id)
    forks = state.select(torch.tensor([1, 1, 0]))
    canvas = replace(forks.canvas, keys=rng.sample_keys(9, torch.arange(3)))
    done = run(replace(forks, canvas=canvas), sampler, model.spec.mask_id)
    out = trajectory(done, [prompts[1], prompts[1], prompts[0]], model, sampler)
    first, second, _ = out.predictions.tokens
    assert torch.equal(first[0], second[0]) and not torch.equal(first, second)
    for row in range(3):
        events = out.events.select((out.events.row == row).nonzero()[:, 0])
        assert torch.equal(out.predictions.tokens[row, events.step - 1, events.position], events.token)


def test_what_cannot_see_the_whole_canvas_is_refused() -> None:
    causal, tiny = tiny_llada2(seed=1, block_size=4), {"gen_length": 8, "temperature": 1.0, "record_predictions": True}
    with pytest.raises(RecipeError, match="a block-causal model cannot predict the blocks after the open one"):
        generate(causal, [[5, 6]], sampler="rl", **tiny)
    whole = tiny_llada2(seed=1, block_size=None)
    with pytest.raises(RecipeError, match="one-step completions are asked for through a cache"):
        generate(whole, [[5, 6]], sampler="rl", cache="prefix", **tiny)
