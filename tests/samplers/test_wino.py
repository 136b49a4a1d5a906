"""WINO: the law of every event log by enumeration, its limits, its bound, and what it needs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from dllm_rl import rng
from dllm_rl.diffusion.trajectory import Op
from dllm_rl.errors import ModelContractError, RecipeError
from dllm_rl.samplers.generate import begin, generate, rollout, trajectory
from dllm_rl.samplers.loop import Sampler, advance, run
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import ShareOfOpen
from dllm_rl.samplers.revise.base import NOTHING
from dllm_rl.samplers.revise.wino import Wino
from dllm_rl.samplers.select import Threshold
from dllm_rl.toys.families import tiny_dream, tiny_llada2
from tests.diffusion.tabular import Tabular
from tests.samplers.oracle import Table
from tests.samplers.revision_oracle import Enumeration, logs_of, wino
from tests.samplers.test_parts import standing

EAGER = {"sampler": "wino", "threshold": 0.15, "verify": 0.5}
RAGGED = [[1, 0], [2], [], [0, 0], [1]]
IDS = [7, 3, 5, 9, 1]


def published(m: int) -> int:
    return min(max(int(m * 0.7), 5), 20)


@cache
def table(tied: bool = False, longest: int = 5, words: int = 3) -> Table:
    model = Table(seed=2, longest=longest, words=words)
    if tied:
        model.tables = {n: torch.zeros_like(values) for n, values in model.tables.items()}
    return model


def count(out, op: Op) -> int:
    return int((out.events.op == op).sum())


def logps(enumeration: Enumeration, logs, template=None) -> torch.Tensor:
    return torch.tensor([enumeration.probability(log, template) for log in logs], dtype=torch.float64).log()


@pytest.mark.parametrize("order", ["drawn", "max"])
@pytest.mark.parametrize(("tied", "threshold", "verify"), [(False, 0.3, 0.5), (False, 0.15, 0.2), (True, 0.2, 0.3)])
def test_behaviour_logp_is_the_probability_of_the_log(order, tied, threshold, verify):
    model = table(tied)
    enumeration = Enumeration(model, [1], [4], wino(threshold, verify, published, order == "max"), 0.8)
    law = enumeration.law()
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    settings = {"threshold": threshold, "verify": verify, "order": order, "temperature": 0.8}
    out = generate(model, [[1]] * 150, gen_length=4, sampler="wino", **settings)
    assert out.exactness == ("exact_with_F" if order == "drawn" else "exact")
    assert count(out, Op.REMASK) > 0 or (tied and order == "max")  # four at once
    expected = torch.tensor([law[log] for log in logs_of(out)], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("temperature", [0.8, 1.3])
@pytest.mark.parametrize("template", [None, [None, None, 2, None, None]], ids=["free", "infill"])
@pytest.mark.parametrize(("verify", "most"), [(1.0, 3), (0.3, 5)])
def test_the_bar_holds_with_the_cap(verify, most, template, temperature):
    """The published cap does not bind in fewer than 6 positions; this one does."""
    model = table(longest=6)
    enumeration = Enumeration(
        model, [1], [5], wino(0.2, verify, lambda m: min(max(m * 6 // 10, 2), most)), temperature
    )
    transform = Request(gen_length=5, temperature=temperature).transform(model.spec)
    sampler = make_sampler(model.spec, "wino", {}, Request(gen_length=5, temperature=temperature))
    rule = Threshold(0.2, cap=ShareOfOpen(6, 2, most))
    sampler = Sampler(transform, sampler.score, rule, sampler.blocks, Wino(verify))
    keys = rng.sample_keys(1, torch.arange(100))
    fixed = None if template is None else [template] * 100
    out = rollout(model, [[1]] * 100, sampler, keys, fixed=fixed)
    assert count(out, Op.REMASK) > 5
    torch.testing.assert_close(
        out.behaviour_logp, logps(enumeration, logs_of(out), template), rtol=0, atol=1e-10
    )


def test_several_blocks_follow_the_enumeration():
    """Each starts anew: what the block before accepted in its last step counts for nothing."""
    model = table(longest=9, words=2)
    enumeration = Enumeration(model, [1], [4, 4], wino(0.15, 0.6, published), 1.0)
    out = generate(
        model, [[1]] * 40, gen_length=8, block_length=4, sampler="wino", temperature=1.0, threshold=0.15, verify=0.6
    )
    assert len({step for step, op in zip(out.events.step, out.events.op, strict=True) if op == Op.REMASK}) > 3
    torch.testing.assert_close(out.behaviour_logp, logps(enumeration, logs_of(out)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("order", ["drawn", "max"])
def test_without_verification_it_is_the_threshold_with_the_cap(order, temperature):
    model = table(longest=9, words=2)
    request = Request(gen_length=8, block_length=8, temperature=temperature)
    sampler = make_sampler(model.spec, "wino", {"threshold": 0.01, "verify": 0.0, "order": order}, request)
    plain = make_sampler(model.spec, "threshold", {"threshold": 0.01, "order": order}, request)
    plain = replace(plain, select=Threshold(0.01, cap=ShareOfOpen()))
    keys = rng.sample_keys(0, torch.arange(30))
    ours, theirs = (rollout(model, [[1], [0]] * 15, each, keys) for each in (sampler, plain))
    assert plain.revise is NOTHING and ours.nfe == theirs.nfe and max(ours.nfe) > 1
    for name in ("row", "step", "position", "op", "token", "logq", "logp", "conf"):
        assert torch.equal(getattr(ours.events, name).nan_to_num(), getattr(theirs.events, name).nan_to_num()), name
    assert torch.equal(ours.selection_logp, theirs.selection_logp)


def test_the_cap_is_the_published_one():
    for m in range(1, 40):
        canvas = standing(m, 0).open_next_block(stay=torch.tensor([False]))
        assert int(ShareOfOpen()(canvas)) == published(m), m


@pytest.mark.parametrize("settings", [{"verify": 1.0}, {"verify": 0.6}, {"verify": 1.0, "block_length": 4}])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_block_takes_no_more_forwards_than_it_has_positions(settings, temperature):
    """Every token is doubted, every step accepts what it can: the allowance alone ends it."""
    model = table(longest=9, words=2)
    way = {"sampler": "wino", "gen_length": 8, "threshold": 0.05, "temperature": temperature, **settings}
    out = generate(model, [[i % 2] for i in range(60)], **way)
    assert count(out, Op.REMASK) > 60 / (1 + 5 * (temperature == 0))
    assert max(out.nfe) <= 8
    for row in range(60):
        mine = out.events.row == row
        ops, steps = out.events.op[mine], out.events.step[mine]
        wrote = [int(((steps == s) & (ops == Op.WRITE)).sum()) for s in range(1, out.nfe[row] + 1)]
        hid = [int(((steps == s) & (ops == Op.REMASK)).sum()) for s in range(1, out.nfe[row] + 1)]
        assert min(wrote) >= 1 and hid[0] == 0
        assert all(hid[t] <= wrote[t - 1] - 1 for t in range(1, len(hid)))
        assert all(h == 0 for w, h in zip(wrote, hid, strict=True) if w == 1)
        assert sum(wrote) - sum(hid) == 8


def test_what_is_given_is_never_touched():
    model = table(longest=9, words=2)
    template = [0, None, None, None, 1, None, None, None]
    out = generate(model, [[1]] * 30, gen_length=8, temperature=1.0, fixed=[template] * 30, **EAGER)
    assert count(out, Op.REMASK) > 0
    touched = set(out.events.position[out.events.op != Op.FIX].tolist())
    assert touched == {1, 2, 3, 5, 6, 7}
    assert all(row[0] == 0 and row[4] == 1 for row in out.completions)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_the_others_and_the_log_replays_every_canvas(temperature):
    model = table(longest=8)
    way = {"gen_length": 6, "temperature": temperature, **EAGER}
    watched = []
    together = generate(model, RAGGED, sample_ids=IDS, watch=lambda _, canvas: watched.append(canvas.tokens), **way)
    assert count(together, Op.REMASK) > 0 and len(set(together.nfe)) > 1
    for step, tokens in enumerate(watched):
        assert torch.equal(together.canvas(step), tokens)
    order = [3, 0, 4, 1, 2]
    for rows in ([0], [1], [2], [3], [4], order):
        few = generate(model, [RAGGED[i] for i in rows], sample_ids=[IDS[i] for i in rows], **way)
        same = together.select(rows)
        assert logs_of(few) == logs_of(same)
        torch.testing.assert_close(few.behaviour_logp, same.behaviour_logp, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_fork_goes_on_as_the_row_would_have(steps):
    model, prompts = table(longest=7), [[1], [2], [0]]
    sampler = make_sampler(
        model.spec, "wino", {"threshold": 0.15, "verify": 0.9}, Request(gen_length=6, temperature=1.0)
    )
    keys = rng.sample_keys(4, torch.arange(3))
    whole = rollout(model, prompts, sampler, keys)
    assert count(whole, Op.REMASK) > 0
    state = begin(model, prompts, sampler, keys)
    for _ in range(steps):
        state = advance(state, sampler, model.spec.mask_id)
    rows = [2, 0, 2, 1]
    fork = run(state.select(torch.tensor(rows)), sampler, model.spec.mask_id)
    out = trajectory(fork, [prompts[i] for i in rows], model, sampler)
    assert logs_of(out) == logs_of(whole.select(rows))
    torch.testing.assert_close(out.behaviour_logp, whole.behaviour_logp[rows], rtol=0, atol=1e-12)


def test_the_draws_left_out_have_no_part_in_what_is_hidden():
    """Rows that wrote the same hid the same, whatever they drew elsewhere: a log leads to one place (asserted in the
    enumeration), and here so do the rows of a batch."""
    model = table()
    out = generate(model, [[1]] * 400, gen_length=4, temperature=1.0, sampler="wino", threshold=0.3, verify=0.5)
    seen: dict = {}
    for log in logs_of(out):
        for step, events in enumerate(log):
            wrote = frozenset(event for event in events if event[0] == "WRITE")
            hid = frozenset(event for event in events if event[0] == "REMASK")
            assert seen.setdefault((log[:step], wrote), hid) == hid
    assert len({hid for hid in seen.values()}) > 3


def test_a_real_network_casts_the_same_shadow_whatever_its_attention(tiny):
    """Bidirectional and block-causal; with nothing verified a shadow changes no text."""
    for model in (tiny, tiny_llada2(seed=1, block_size=4)):
        prompts = [[5, 6, 7], [8], [9, 9, 9, 9, 9]]
        settings = {"gen_length": 8, "temperature": 1.0, "threshold": 0.02}
        plain = generate(model, prompts, sampler="threshold", **settings)
        same = generate(model, prompts, sampler="wino", verify=0.0, **settings)
        assert same.completions == plain.completions and max(plain.nfe) > 2
        torch.testing.assert_close(same.behaviour_logp, plain.behaviour_logp, rtol=0, atol=1e-5)
        other = generate(model, prompts, sampler="wino", verify=1.0, **settings)
        assert count(other, Op.REMASK) > 0


def test_a_row_goes_on_behind_an_end_that_was_hidden_again():
    model = Table(seed=2, longest=9, words=2, eos_ids=(1,))
    way = {"gen_length": 8, "block_length": 4, "temperature": 1.0, "stop_at_eos": True, **EAGER}
    out = generate(model, [[1]] * 60, **way)
    ended = [row for row, tokens in enumerate(out.completions) if 1 in tokens[:4]]
    assert 0 < len(ended) < 60
    for row, tokens in enumerate(out.completions):
        assert (tokens[4:] == [1] * 4 and bool(out.given[row, 4:].all())) == (row in ended)
    again = (out.events.op == Op.REMASK) & (out.events.position < 4)
    assert set(range(60)) - set(ended) & set(out.events.row[again].tolist())


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ModelContractError, match="cannot be told who looks at whom"):
        generate(Tabular(longest=5), [[1]], gen_length=4, sampler="wino")
    with pytest.raises(ModelContractError, match="choose a sampler without a shadow"):
        generate(tiny_dream(), [[1]], gen_length=4, sampler="wino")
    with pytest.raises(ModelContractError, match="a shadow cannot be cast through a cache; set cache to 'none'"):
        generate(tiny_llada2(), [[1]], gen_length=4, sampler="wino", cache="block")
    for options, message in (
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"verify": 1.1}, "verify is 1.1; expected a probability"),
        ({"verify": -0.1}, "verify is -0.1"),
        ({"order": "best"}, "order is 'best'"),
        ({"steps": 4}, "decides by itself"),
    ):
        with pytest.raises(RecipeError, match=message):
            generate(table(), [[1]], gen_length=4, sampler="wino", **options)
