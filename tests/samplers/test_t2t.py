"""Token-to-token edits: the law of every event log by enumeration, its limits, its bound, and the exact cache."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from dllm_rl import rng
from dllm_rl.diffusion.trajectory import Op, Trajectory
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.drift import measure_drift
from dllm_rl.samplers.generate import begin, generate, rollout, trajectory
from dllm_rl.samplers.loop import advance, run
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.toys.families import tiny_llada2
from tests.samplers.oracle import Table
from tests.samplers.revision_oracle import Enumeration, logs_of, token_to_token

RESTLESS = {"sampler": "t2t", "threshold": 0.5, "edit": 0.3, "post_steps": 5}
RAGGED = [[1, 0], [2], [], [0, 0], [1]]
IDS = [7, 3, 5, 9, 1]


@cache
def table(longest: int = 5, words: int = 3, seed: int = 3, tied: bool = False) -> Table:
    model = Table(seed=seed, longest=longest, words=words)
    if tied:
        model.tables = {n: torch.zeros_like(values) for n, values in model.tables.items()}
    return model


def count(out: Trajectory, op: Op) -> int:
    return int((out.events.op == op).sum())


def idle(out: Trajectory) -> list[int]:
    """Forwards of each row that wrote nothing."""
    events = out.events
    wrote = [set(events.step[(events.row == row) & (events.op == Op.WRITE)].tolist()) for row in range(len(out))]
    return [nfe - len(steps) for nfe, steps in zip(out.nfe, wrote, strict=True)]


@pytest.mark.parametrize("order", ["drawn", "max"])
@pytest.mark.parametrize("blocks", [[3], [2, 2]], ids=str)
@pytest.mark.parametrize(
    ("threshold", "edit", "post_steps"), [(0.5, 0.3, 2), (0.7, 0.5, 4), (0.5, 0.0, 1), (0.3, 0.3, 0)]
)
def test_behaviour_logp_is_the_probability_of_the_log(order, blocks, threshold, edit, post_steps):
    model = table()
    rule = token_to_token(threshold, edit, post_steps, order == "max")
    law = Enumeration(model, [1], blocks, rule, 0.8).law()
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    settings = {"threshold": threshold, "edit": edit, "post_steps": post_steps, "order": order, "temperature": 0.8}
    lengths = {"gen_length": sum(blocks), "block_length": blocks[0]}
    out = generate(model, [[1]] * 150, sampler="t2t", **lengths, **settings)
    assert out.exactness == ("exact_with_F" if order == "drawn" else "exact")
    assert count(out, Op.EDIT) > 50 or post_steps == 0
    expected = torch.tensor([law[log] for log in logs_of(out)], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, expected, rtol=0, atol=1e-10)


def test_an_infill_follows_the_enumeration():
    """A block with nothing to write is not opened, and what is given is not edited."""
    model, template = table(longest=7), [None, 0, 2, 2, None, None]
    enumeration = Enumeration(model, [1], [2, 2, 2], token_to_token(0.5, 0.1, 3), 1.0)
    law = enumeration.law(template)
    way = {"gen_length": 6, "block_length": 2, "temperature": 1.0, "fixed": [template] * 100}
    out = generate(model, [[1]] * 100, sampler="t2t", threshold=0.5, edit=0.1, post_steps=3, **way)
    edited = out.events.op == Op.EDIT
    assert set(out.events.position[edited].tolist()) == {0, 4, 5}
    assert all(row[1:4] == [0, 2, 2] for row in out.completions)
    expected = torch.tensor([law[log] for log in logs_of(out)], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("order", ["drawn", "max"])
@pytest.mark.parametrize("block_length", [6, 2])
def test_where_nothing_is_sure_enough_to_be_edited_it_is_the_threshold(block_length, order, temperature):
    way = {"gen_length": 6, "block_length": block_length, "order": order, "temperature": temperature}
    prompts = [[1], [2]] * 15
    ours = generate(table(longest=7), prompts, sampler="t2t", threshold=0.85, edit=1.0, **way)
    theirs = generate(table(longest=7), prompts, sampler="threshold", threshold=0.85, **way)
    assert ours.nfe == theirs.nfe and max(ours.nfe) > 2
    for name in ("row", "step", "position", "op", "token", "logq", "logp", "conf"):
        assert torch.equal(getattr(ours.events, name).nan_to_num(), getattr(theirs.events, name).nan_to_num()), name
    assert torch.equal(ours.selection_logp, theirs.selection_logp)
    assert ours.exactness == theirs.exactness


@pytest.mark.parametrize("post_steps", [0, 1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_full_block_gets_so_many_passes_and_stops_when_nothing_changes(post_steps, temperature):
    model = table(longest=7)
    way = {**RESTLESS, "edit": 0.1, "post_steps": post_steps, "temperature": temperature}
    out = generate(model, [[i % 3] for i in range(45)], gen_length=6, block_length=3, **way)
    passes = idle(out)
    assert max(out.nfe) <= 2 * (3 + post_steps)
    assert max(passes) == 2 * post_steps and (min(passes) < 2 * post_steps or post_steps < 2 or temperature == 0)
    edits = [set() for _ in out.nfe]
    for row, step, op in zip(*(getattr(out.events, name).tolist() for name in ("row", "step", "op")), strict=True):
        edits[row].add(step) if op == Op.EDIT else None
    for row, log in enumerate(logs_of(out)):
        for step, (events, following) in enumerate(zip(log, (*log[1:], None), strict=True), start=1):
            if not events:  # nothing changed: the block is left, and the next one writes
                assert following is None or any(event[0] == "WRITE" for event in following)
                assert step not in edits[row]


def test_where_the_network_agrees_one_pass_says_so():
    """Every position prefers what stands there, so that each block takes one forward more than writing it."""
    model = table(longest=5, tied=True)
    way = {"gen_length": 4, "block_length": 2, "threshold": 0.9}
    plain = generate(model, [[1]], sampler="threshold", **way)
    edited = generate(model, [[1]], sampler="t2t", edit=0.0, **way)
    assert edited.completions == plain.completions == [[0] * 4] and count(edited, Op.EDIT) == 0
    assert (plain.nfe, edited.nfe) == ([4], [6])
    assert edited.reveal_step.tolist() == [[1, 2, 4, 5]]


@pytest.mark.parametrize(("edit", "edits"), [(0.25, False), (0.2499, True)])
def test_an_edit_needs_more_than_its_threshold(edit, edits):
    """Everything has a probability of a quarter, and the first token is the likeliest of equals."""
    model = table(longest=5, tied=True)
    out = generate(model, [[1]] * 20, gen_length=4, temperature=1.0, sampler="t2t", threshold=0.9, edit=edit)
    assert (count(out, Op.EDIT) > 0) == edits
    assert all(tokens == [0] * 4 for tokens in out.completions) == edits


def test_an_edit_is_the_likeliest_permitted_token_and_no_draw():
    model = Table(words=4, longest=4, seed=1)
    model.spec = model.spec.__class__(mask_id=4, eos_ids=(0,), forbidden_ids=(2, 4))
    for values in model.tables.values():
        values[..., 4] += 2.0
        values[..., 2] += 2.0
    out = generate(model, [[1]] * 25, gen_length=3, temperature=1.0, **{**RESTLESS, "threshold": 0.02, "edit": 0.05})
    events = out.events
    edits = (events.op == Op.EDIT).nonzero()[:, 0].tolist()
    assert len(edits) > 20
    for e in edits:
        row, step, place = int(events.row[e]), int(events.step[e]), int(events.position[e])
        before = out.canvas(step - 1)[row]
        p = model.logits(before[None])[0, 1 + place].softmax(-1)
        likeliest = max((0, 1, 3), key=lambda v: p[v])
        assert events.token[e] == likeliest != before[1 + place] != model.spec.mask_id
        assert p[likeliest] > 0.05
        assert events.logq[e] == 0 and events.logp[e].isnan()
    assert {token for row in out.completions for token in row} <= {0, 1, 3}


def test_what_an_edit_leaves_in_the_trajectory():
    """The step of a position is that of its last change, and an edited token has no likelihood of its own."""
    out = generate(table(), [[1]] * 40, gen_length=3, temperature=1.0, **RESTLESS)
    last: dict[tuple[int, int], tuple[int, int]] = {}
    for row, step, position, op in zip(
        *(getattr(out.events, name).tolist() for name in ("row", "step", "position", "op")), strict=True
    ):
        last[row, position] = (step, op)
    for (row, position), (step, op) in last.items():
        assert out.reveal_step[row, position] == step
        assert (out.token_behaviour_logp[row, 1 + position] == 0) == (op == Op.EDIT)
    assert {op for _, op in last.values()} == {Op.WRITE, Op.EDIT}
    assert torch.equal(out.behaviour_logp, out.selection_logp.sum(1).index_add(0, out.events.row, out.events.logq))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_the_others_and_the_log_replays_every_canvas(temperature):
    model = table(longest=6)
    way = {"gen_length": 4, "block_length": 2, "temperature": temperature, **RESTLESS}
    watched = []
    together = generate(model, RAGGED, sample_ids=IDS, watch=lambda _, canvas: watched.append(canvas.tokens), **way)
    assert count(together, Op.EDIT) > 2 and len(set(together.nfe)) > 1
    for step, tokens in enumerate(watched):
        assert torch.equal(together.canvas(step), tokens)
    for rows in ([0], [1], [2], [3], [4], [3, 0, 4, 1, 2]):
        few = generate(model, [RAGGED[i] for i in rows], sample_ids=[IDS[i] for i in rows], **way)
        same = together.select(rows)
        assert logs_of(few) == logs_of(same)
        torch.testing.assert_close(few.behaviour_logp, same.behaviour_logp, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_fork_goes_on_as_the_row_would_have(steps):
    model, prompts = table(longest=5), [[1], [2], [0]]
    options = {name: value for name, value in RESTLESS.items() if name != "sampler"}
    sampler = make_sampler(model.spec, "t2t", options, Request(gen_length=4, block_length=2, temperature=1.0))
    keys = rng.sample_keys(4, torch.arange(3))
    whole = rollout(model, prompts, sampler, keys)
    assert count(whole, Op.EDIT) > 3
    state = begin(model, prompts, sampler, keys)
    for _ in range(steps):
        state = advance(state, sampler, model.spec.mask_id)
    rows = [2, 0, 2, 1]
    fork = run(state.select(torch.tensor(rows)), sampler, model.spec.mask_id)
    out = trajectory(fork, [prompts[i] for i in rows], model, sampler)
    assert logs_of(out) == logs_of(whole.select(rows))
    torch.testing.assert_close(out.behaviour_logp, whole.behaviour_logp[rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_ends_by_what_stands_in_its_block_after_the_last_pass(temperature):
    """Ends that are edited away do not end a row; ends that an edit brings do."""
    model = Table(seed=2, longest=5, eos_ids=(2,))
    way = {"gen_length": 4, "block_length": 2, "temperature": temperature, "stop_at_eos": True, **RESTLESS}
    out = generate(model, [[i % 3] for i in range(60)], **way)
    first = (out.events.position < 2) & (out.events.token == 2)
    wrote_end = set(out.events.row[first & (out.events.op == Op.WRITE)].tolist())
    ended = {row for row, tokens in enumerate(out.completions) if 2 in tokens[:2]}
    assert 0 < len(ended) < 60
    if temperature:
        assert wrote_end - ended and ended - wrote_end
    for row, tokens in enumerate(out.completions):
        assert (tokens[2:] == [2, 2] and bool(out.given[row, 2:].all())) == (row in ended)
    filled = out.events.op == Op.FIX
    assert out.events.step[filled].tolist() == [out.nfe[row] for row in out.events.row[filled].tolist()]


def sharpened(block_size: int):
    model = tiny_llada2(seed=1, block_size=block_size)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(3.0 if parameter.dim() >= 2 else 1.0)
    return model


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("post_steps", [1, 3])
def test_the_block_cache_is_exact(post_steps, temperature):
    """Edits stay in the open block, and the forward that opens the next one visits its final tokens.

    Prompts of 5, 1 and 3 tokens with blocks of 4; blocks are left both because nothing changes and in the middle of it.
    """
    model, prompts = sharpened(4), [[1, 2, 3, 4, 5], [7], [3, 3, 3]]
    way = {"gen_length": 12, "temperature": temperature, "sampler": "t2t", "threshold": 0.05, "edit": 0.02}
    plain, cached = (generate(model, prompts, cache=kept, post_steps=post_steps, **way) for kept in ("none", "block"))
    assert logs_of(cached) == logs_of(plain)
    assert cached.exactness == plain.exactness == ("exact_with_F" if temperature else "none")
    torch.testing.assert_close(cached.events.logp, plain.events.logp, rtol=0, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(cached.selection_logp, plain.selection_logp, rtol=0, atol=1e-5)
    assert measure_drift(model, cached).largest < 1e-5
    edits = plain.events.select((plain.events.op == Op.EDIT).nonzero()[:, 0])
    assert len(edits.row) > 20
    left_changed = [
        bool(((edits.row == row) & (edits.step == step)).any())
        for row, log in enumerate(logs_of(plain))
        for step in range(1, len(log))
        if not any(event[0] == "WRITE" for event in log[step - 1]) and any(e[0] == "WRITE" for e in log[step])
    ]
    assert any(left_changed)


def test_an_approximate_cache_is_marked_as_one():
    way = {"gen_length": 4, "temperature": 1.0, "threshold": 0.05, "edit": 0.02, "post_steps": 1}
    for name in ("prefix", "dual", "dkv", "vicinity"):
        out = generate(sharpened(4), [[1, 2, 3, 4, 5]], cache=name, sampler="t2t", **way)
        assert out.exactness == "approximate_cache"


def test_wrong_options_are_refused():
    for options, message in (
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"edit": 1.5}, "edit is 1.5; expected a probability"),
        ({"edit": -0.5}, "edit is -0.5; expected a probability"),
        ({"post_steps": -1}, "post_steps is -1; expected at least 0"),
        ({"order": "best"}, "order is 'best'"),
        ({"steps": 4}, "decides by itself"),
    ):
        with pytest.raises(RecipeError, match=message):
            generate(table(), [[1]], gen_length=4, sampler="t2t", **options)
