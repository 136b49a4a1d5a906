"""Tokens that are given: they stay, they cost nothing, and what is written around them is conditioned on them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from dllm_rl.diffusion.trajectory import Op
from dllm_rl.errors import DataError
from dllm_rl.samplers.generate import generate
from dllm_rl.samplers.names import HEADS
from dllm_rl.samplers.presets import PRESETS
from dllm_rl.toys.families import tiny_llada2
from tests.samplers.needs import NEEDS
from tests.samplers.oracle import Exact, Table, enumerate_rollouts, steps_of, text_of, total_variation
from tests.samplers.remask_oracle import Planning
from tests.samplers.schedules import Scheduling

RAGGED = [[1, 0], [2], [], [0, 0], [1], [2, 1]]
TEMPLATES = [
    [None, None, None, None],
    [0, None, None, 2],
    [None, 1, 1, None],
    [None, None, 0, 1],
    [2, 1, None, None],
    [1, 1, 0, 0],
]
FIXED = [(row, i, token) for row, given in enumerate(TEMPLATES) for i, token in enumerate(given) if token is not None]
WAYS = [
    *({"sampler": name, **NEEDS.get(name, {})} for name in PRESETS),
    {"sampler": "llada", "remasking": "random"},
    {"sampler": "rl", "steps": 2, "block_length": 2},
    {"sampler": "rl", "cfg_scale": 0.7},
    {"sampler": "llada", "temperature": 0.0},
]
ORDERS = {
    "low_confidence": {"sampler": "llada"},
    "random": {"sampler": "llada", "remasking": "random"},
    "max_probability": {"sampler": "rl"},
}


def way_name(way):
    return "-".join(str(value) for value in way.values() if isinstance(value, str | int | float))


def infill(model, way, prompts=RAGGED, fixed=TEMPLATES, **more):
    return generate(model, prompts, **{"gen_length": 4, "temperature": 1.0, **way}, fixed=fixed, **more)


def table_for(way, eos_ids=()):
    """A table with the head that the sampler asks."""
    head = HEADS.get(way["sampler"])
    if head == "planner":
        return Planning(longest=6, eos_ids=eos_ids)
    return Scheduling(longest=6, eos_ids=eos_ids) if head == "schedule" else Table(longest=6, eos_ids=eos_ids)


@pytest.mark.parametrize("way", WAYS, ids=[way_name(way) for way in WAYS])
def test_what_is_given_is_there_from_the_start_and_stays(way):
    model = table_for(way, eos_ids=(2,))
    watched = []
    out = infill(model, way, watch=lambda steps, canvas: watched.append((steps, canvas)))
    assert [steps for steps, _ in watched] == list(range(out.num_steps + 1))
    row, position, token = torch.tensor(FIXED).T
    for step, canvas in watched:
        assert torch.equal(canvas.completion[row, position], token)
        assert torch.equal(out.canvas(step)[row, 2 + position], token)
    start = torch.tensor([[model.spec.mask_id if token is None else token for token in row] for row in TEMPLATES])
    assert torch.equal(out.canvas(0)[:, 2:], start)
    shown = model.seen[::2] if way.get("cfg_scale") else model.seen
    assert [row.tolist()[-4:] for row in shown[0]] == start[:5].tolist()  # the sixth has nothing to write
    check_the_log(out)


def check_the_log(out):
    """What is given is logged once and never drawn, revised or scored."""
    events = out.events
    touched = list(zip(events.row.tolist(), events.position.tolist(), events.token.tolist(), strict=True))
    fixes = [i for i, op in enumerate(events.op.tolist()) if op == Op.FIX]
    assert [touched[i] for i in fixes] == FIXED
    given = {cell[:2] for cell in FIXED}
    assert all(cell[:2] not in given for i, cell in enumerate(touched) if i not in fixes)
    assert (events.step[fixes] == 0).all() and (events.logq[fixes] == 0).all()
    assert (events.step.tolist().count(0)) == len(fixes)
    where = torch.zeros(6, 4, dtype=torch.bool)
    where[tuple(torch.tensor(sorted(given)).T)] = True
    assert torch.equal(out.given, where)
    assert torch.equal(out.reveal_step == 0, where)
    sequences = out.sequences()
    assert not (sequences.scored[:, 2:] & where).any()
    assert torch.equal(sequences.scored[:, 2:], out.written & ~where)
    assert sequences.completion[:, 2:].all() and sequences.attend[:, 2:].all()
    assert (out.token_behaviour_logp[:, 2:][where] == 0).all()


@pytest.mark.parametrize("way", WAYS, ids=[way_name(way) for way in WAYS])
def test_a_row_does_not_depend_on_the_templates_of_the_others(way):
    ids = [7, 3, 5, 9, 1, 2]
    model = table_for(way, eos_ids=(2,))
    together = infill(model, way, sample_ids=ids)
    rows = [4, 2, 1]
    few = infill(model, way, [RAGGED[i] for i in rows], [TEMPLATES[i] for i in rows], sample_ids=[ids[i] for i in rows])
    same = together.select(rows)
    assert few.completions == same.completions
    assert few.nfe == same.nfe
    assert torch.equal(few.reveal_step, same.reveal_step)
    torch.testing.assert_close(few.behaviour_logp, same.behaviour_logp, rtol=0, atol=1e-12, equal_nan=True)


def test_nothing_given_is_as_if_there_were_no_template():
    for way in ORDERS.values():
        free = generate(table_for(way), RAGGED, gen_length=4, temperature=1.0, **way)
        same = infill(table_for(way), way, fixed=[[None] * 4] * 6)
        assert same.completions == free.completions
        assert torch.equal(same.behaviour_logp, free.behaviour_logp)


def test_everything_given_takes_no_forward():
    model = Table(longest=5)
    out = generate(model, [[1], [2]], gen_length=3, temperature=1.0, sampler="rl", fixed=[[0, 1, 2], [2, 2, 2]])
    assert (out.nfe, out.num_steps, model.seen) == ([0, 0], 0, [])
    assert out.completions == [[0, 1, 2], [2, 2, 2]]
    assert out.behaviour_logp.tolist() == [0.0, 0.0]
    assert not out.sequences().scored.any()
    mixed = generate(model, [[1], [2]], gen_length=3, sampler="rl", fixed=[[0, 1, 2], [None, 2, None]])
    assert mixed.nfe == [0, 2]
    assert [len(canvas) for canvas in model.seen] == [1, 1]


@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "dkv", "vicinity"])
def test_a_block_with_nothing_to_write_takes_no_forward(tiny, cache):
    prompts, templates = [[5, 6], [7], [9, 9, 9]], [[1, 2, None, None, 3, 4, None, 5]] * 2 + [[None] * 4 + [1, 2, 3, 4]]
    settings = {"gen_length": 8, "block_length": 2, "steps": 8, "sampler": "rl", "temperature": 1.0, "cache": cache}
    out = generate(tiny, prompts, **settings, fixed=templates)
    assert out.nfe == [3, 3, 4]
    assert out.reveal_step[:2, 2:4].sort(dim=1).values.tolist() == [[1, 2], [1, 2]]
    assert out.reveal_step[:2, 6].tolist() == [3, 3]
    for row, template in zip(out.completions, templates, strict=True):
        assert all(given in (None, token) for given, token in zip(template, row, strict=True))


def test_the_exact_cache_stays_exact_over_blocks_that_are_skipped():
    model = tiny_llada2(seed=1, block_size=4)
    prompts, given = [[5, 6], [7, 8, 9, 4, 2]], [None] * 2 + [1] * 6 + [None, 3, 3, None]
    settings = {"gen_length": 12, "sampler": "rl", "temperature": 1.0, "fixed": [given, given]}
    fresh, cached = (generate(model, prompts, **settings, cache=cache) for cache in ("none", "block"))
    assert cached.completions == fresh.completions
    torch.testing.assert_close(cached.behaviour_logp, fresh.behaviour_logp, rtol=0, atol=1e-5)
    assert cached.exactness == "exact"


def test_a_quota_shares_only_what_is_to_be_written():
    given = [None, 0, None, 0, None, None]
    out = generate(Table(longest=7), [[1]], gen_length=6, steps=3, sampler="rl", fixed=[given])
    assert sorted(out.reveal_step[0].tolist()) == [0, 0, 1, 1, 2, 3]


EXACT = Exact()


def conditional(model: Exact, given: list[int | None]) -> dict[tuple[int, ...], float]:
    agree = {t: p for t, p in model.joint.items() if all(g in (None, v) for g, v in zip(given, t, strict=True))}
    return {text: chance / sum(agree.values()) for text, chance in agree.items()}


@pytest.mark.parametrize(
    ("order", "unbiased"), [("max_probability", True), ("random", True), ("low_confidence", False)]
)
@pytest.mark.parametrize("given", [[None, None, 1], [2, None, None], [None, 0, None], [None, 2, 1]], ids=str)
def test_one_token_at_a_time_the_infill_follows_the_joint_given_what_is_there(given, order, unbiased):
    """A fixed suffix, prefix or middle: with an order blind to the draws the law is Bayes' rule, exactly."""
    model = EXACT
    target = conditional(model, given)
    holes = given.count(None)
    law: dict[tuple[int, ...], float] = {}
    for steps, chance in enumerate_rollouts(model, [], 3, [1] * holes, order, fixed=given).items():
        words = iter(text_of(steps))
        text = tuple(next(words) if token is None else token for token in given)
        law[text] = law.get(text, 0.0) + chance
    distance = total_variation(law, target)
    assert distance < 1e-12 if unbiased or holes == 1 else distance > 1e-3
    if given.count(None) == 1:
        return
    out = generate(model, [[]] * 3000, gen_length=3, temperature=1.0, fixed=[given] * 3000, **ORDERS[order])
    seen = {text: count / 3000 for text, count in Counter(map(tuple, out.completions)).items()}
    assert total_variation(seen, law) < 0.04


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "given", [[None, None, None, 2, 1], [0, None, None, None, 1], [None, 1, None, 1, None]], ids=str
)
@pytest.mark.parametrize("quotas", [[1, 1, 1], [2, 1], [3]], ids=str)
def test_behaviour_logp_is_the_probability_of_the_infill(given, quotas, order):
    model = Table(longest=6)
    law = enumerate_rollouts(model, [1], 5, quotas, order, temperature=0.7, fixed=given)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    out = generate(
        model,
        [[1]] * 40,
        gen_length=5,
        steps=len(quotas),
        temperature=0.7,
        fixed=[given] * 40,
        **ORDERS[order],
    )
    expected = torch.tensor([law[steps] for steps in steps_of(out)], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, expected, rtol=0, atol=1e-10)


def test_a_suffix_is_seen_by_models_that_look_both_ways_and_not_by_block_causal_ones(tiny):
    causal = tiny_llada2(seed=1, block_size=4)
    for model, seen in ((tiny, True), (causal, False)):
        out = generate(
            model,
            [[5, 6, 7, 8]] * 2,
            gen_length=8,
            sampler="rl",
            temperature=1.0,
            sample_ids=[3, 3],
            fixed=[[None] * 4 + [1] * 4, [None] * 4 + [2] * 4],
        )
        assert (out.behaviour_logp[0] != out.behaviour_logp[1]) == seen


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ([[None] * 4], "1 templates of fixed tokens for 2 prompts; expected one per prompt"),
        ([[None] * 4, [1, None, 2]], "the template of prompt 1 has 3 places for 4 positions"),
        ([[None] * 4, [1, None, 3, 2]], "the template of prompt 1 gives the mask id 3 at position 2.* None"),
        ([[None, -1, 0, 0], [None] * 4], "the template of prompt 0 gives -1 at position 1; expected a token id"),
    ],
)
def test_templates_that_do_not_fit_are_refused_before_the_first_forward(fixed, message):
    model = Table(longest=6)
    with pytest.raises(DataError, match=message):
        generate(model, [[1], [2]], gen_length=4, fixed=fixed)
    assert not model.seen


def test_stopping_at_the_end_of_sequence_and_fixed_tokens_contradict_each_other():
    model = Table(longest=6, eos_ids=(2,))
    with pytest.raises(DataError, match="stop_at_eos .* fixed tokens .* set stop_at_eos to False"):
        generate(model, [[1]], gen_length=4, block_length=2, stop_at_eos=True, fixed=[[None, None, None, 1]])
    assert not model.seen
    free = generate(model, [[1]], gen_length=4, block_length=2, stop_at_eos=True, fixed=None)
    assert len(free) == 1
