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
from dllm_rl.samplers.loop import advance, run
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import ShareOfOpen
from dllm_rl.samplers.revise.base import NOTHING
from dllm_rl.samplers.select import Threshold
from dllm_rl.toys.families import tiny_dream, tiny_llada2
from tests.diffusion.tabular import Tabular
from tests.samplers.oracle import Table
from tests.samplers.revision_oracle import Enumeration, logs_of, wino
from tests.samplers.test_parts import standing

EAGER = {"sampler": "wino", "threshold": 0.3, "verify": 1.0}
RAGGED = [[1, 0], [2], [], [0, 0], [1]]
IDS = [7, 3, 5, 9, 1]
SENTENCES = [[5, 6, 7], [8], [9, 9, 9, 9, 9]]


def published(m: int) -> int:
    return min(max(int(m * 0.7), 5), 20)


@cache
def table(tied: bool = False, longest: int = 5, words: int = 3, seed: int = 2) -> Table:
    model = Table(seed=seed, longest=longest, words=words)
    if tied:
        model.tables = {n: torch.zeros_like(values) for n, values in model.tables.items()}
    return model


def count(out, op: Op) -> int:
    return int((out.events.op == op).sum())


def logps(enumeration: Enumeration, logs, template=None) -> torch.Tensor:
    return torch.tensor([enumeration.probability(log, template) for log in logs], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("order", "seed", "prompt", "threshold", "verify"),
    [("drawn", 2, 1, 0.3, 0.6), ("drawn", 2, 1, 0.45, 0.6), ("max", 2, 2, 0.6, 0.7), ("max", 1, 1, 0.7, 0.7)],
)
def test_behaviour_logp_is_the_probability_of_the_log(order, seed, prompt, threshold, verify):
    model = table(seed=seed)
    enumeration = Enumeration(model, [prompt], [4], wino(threshold, verify, published, order == "max"), 0.8)
    law = enumeration.law()
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    settings = {"threshold": threshold, "verify": verify, "order": order, "temperature": 0.8}
    out = generate(model, [[prompt]] * 150, gen_length=4, sampler="wino", **settings)
    assert out.exactness == ("exact_with_F" if order == "drawn" else "exact")
    assert count(out, Op.REMASK) > 10
    expected = torch.tensor([law[log] for log in logs_of(out)], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", ["drawn", "max"])
@pytest.mark.parametrize("template", [None, [None, None, 2, None, None]], ids=["free", "infill"])
@pytest.mark.parametrize(("tied", "verify", "most"), [(False, 1.0, 3), (False, 0.3, 5), (True, 0.3, 3)])
def test_the_bar_holds_with_the_cap(tied, verify, most, template, order):
    """The published cap does not bind in fewer than 6 positions; this one does."""
    model, request = table(tied, longest=6), Request(gen_length=5, temperature=1.3)
    rule = wino(0.2, verify, lambda m: min(max(m * 6 // 10, 2), most), order == "max")
    enumeration = Enumeration(model, [1], [5], rule, 1.3)
    sampler = make_sampler(model.spec, "wino", {"verify": verify, "order": order}, request)
    sampler = replace(sampler, select=Threshold(0.2, cap=ShareOfOpen(6, 2, most)))
    keys = rng.sample_keys(1, torch.arange(100))
    out = rollout(model, [[1]] * 100, sampler, keys, fixed=None if template is None else [template] * 100)
    assert count(out, Op.REMASK) > 5
    torch.testing.assert_close(out.behaviour_logp, logps(enumeration, logs_of(out), template), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("verify", "hides"), [(0.25, False), (0.2501, True)])
def test_a_token_stays_if_its_copy_gives_it_just_enough(verify, hides):
    """Everything has a probability of a quarter."""
    model, request = table(tied=True, longest=6), Request(gen_length=5)
    sampler = make_sampler(model.spec, "wino", {"threshold": 0.2, "verify": verify}, request)
    sampler = replace(sampler, select=Threshold(0.2, cap=ShareOfOpen(6, 2, 3)))
    out = rollout(model, [[1]], sampler, rng.sample_keys(1, torch.arange(1)))
    assert (count(out, Op.REMASK) > 0) == hides


def test_several_blocks_follow_the_enumeration():
    """Each starts anew: what the block before accepted in its last step counts for nothing."""
    model = table(longest=9, words=2, seed=3)
    enumeration = Enumeration(model, [0], [4, 4], wino(0.3, 1.0, published), 1.0)
    way = {"gen_length": 8, "block_length": 4, "temperature": 1.0, **EAGER}
    out = generate(model, [[0]] * 60, **way)
    assert set(out.events.position[out.events.op == Op.REMASK].tolist()) == {2, 3, 4, 7}
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
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_block_takes_no_more_forwards_than_it_has_positions(settings, temperature):
    """Every token is doubted, every step accepts what it can: the allowance alone ends it."""
    model = table(longest=9, words=2)
    way = {"sampler": "wino", "gen_length": 8, "threshold": 0.3, "temperature": temperature, **settings}
    out = generate(model, [[i % 2] for i in range(60)], **way)
    assert count(out, Op.REMASK) > 0 or temperature == 0
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


def test_a_guided_copy_is_guided_like_the_rest():
    """As if the network were the guided one."""
    plain, guided = table(), Table(longest=5)
    hidden = plain.spec.mask_id
    for n, values in plain.tables.items():
        with_prompt = torch.arange(plain.size**n)
        without = with_prompt - with_prompt % plain.size + hidden  # the first of the n tokens
        guided.tables[n] = values[without] + 1.7 * (values - values[without])
    way = {"gen_length": 4, "temperature": 0.8, "sampler": "wino", "threshold": 0.3, "verify": 0.9}
    ours = generate(plain, [[1]] * 100, cfg_scale=0.7, **way)
    theirs = generate(guided, [[1]] * 100, **way)
    assert count(ours, Op.REMASK) > 5
    assert logs_of(ours) == logs_of(theirs)
    torch.testing.assert_close(ours.behaviour_logp, theirs.behaviour_logp, rtol=0, atol=1e-10)


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
    model, prompts = table(longest=9, words=2), [[1], [0], [1]]
    sampler = make_sampler(
        model.spec, "wino", {"threshold": 0.3, "verify": 1.0}, Request(gen_length=8, temperature=1.0)
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
    out = generate(model, [[1]] * 400, gen_length=4, temperature=1.0, sampler="wino", threshold=0.3, verify=0.9)
    seen: dict = {}
    for log in logs_of(out):
        for step, events in enumerate(log):
            wrote = frozenset(event for event in events if event[0] == "WRITE")
            hid = frozenset(event for event in events if event[0] == "REMASK")
            assert seen.setdefault((log[:step], wrote), hid) == hid
    assert len(set(seen.values())) > 2


def test_a_real_network_of_either_attention(tiny):
    """With nothing verified the shadow changes no text."""
    for model in (tiny, tiny_llada2(seed=1, block_size=8)):
        with torch.no_grad():
            for parameter in model.network.parameters():
                parameter.mul_(3.0 if parameter.dim() == 2 else 1.0)
        request = Request(gen_length=8, temperature=1.0)
        sampler = make_sampler(model.spec, "wino", {"threshold": 0.01, "verify": 0.0}, request)
        keys = rng.sample_keys(0, torch.arange(3))
        same, plain = (rollout(model, SENTENCES, each, keys) for each in (sampler, replace(sampler, revise=NOTHING)))
        assert same.completions == plain.completions and max(plain.nfe) > 2
        torch.testing.assert_close(same.behaviour_logp, plain.behaviour_logp, rtol=0, atol=1e-4)
        hiding = generate(model, SENTENCES, sampler="wino", gen_length=8, threshold=0.01, verify=1.0)
        assert count(hiding, Op.REMASK) > 0


def test_an_end_that_is_hidden_again_does_not_end_a_row():
    model = Table(seed=2, words=4, longest=7, eos_ids=(3,))
    way = {"gen_length": 6, "block_length": 3, "temperature": 1.0, "stop_at_eos": True, **EAGER}
    out = generate(model, [[1]] * 80, **way)
    ended = {row for row, tokens in enumerate(out.completions) if 3 in tokens[:3]}
    assert 0 < len(ended) < 80
    for row, tokens in enumerate(out.completions):
        assert (tokens[3:] == [3] * 3 and bool(out.given[row, 3:].all())) == (row in ended)


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
