"""Look-ahead against its objective, written from the paper and evaluated for every candidate."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from dllm_rl.errors import RecipeError
from dllm_rl.samplers.cache import make_policy
from dllm_rl.samplers.drivers.ahead import LookAhead
from dllm_rl.samplers.generate import generate, rollout, row_keys
from tests.samplers.drivers.oracle import (
    RAGGED,
    assert_fixed_tokens_stay,
    assert_log_replays,
    assert_rows_stand_alone,
    assert_same_events,
    entropy,
    probabilities,
    rows_shown,
    run_driver,
    sampler_of,
    state_entropy,
)
from tests.samplers.oracle import Table, steps_of

WIDE = LookAhead(n=80, temperature=50.0, sure=1.0)
"""So many candidates, so noisy, that every selection is among them."""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["llada", "rl", "klass", "dream"])
def test_one_candidate_is_the_wrapped_sampler(name, temperature):
    model, sampler = Table(longest=6), sampler_of(Table(), name, 4, temperature)
    out = run_driver(LookAhead(n=1), model, RAGGED, sampler)
    plain = rollout(model, RAGGED, sampler, row_keys(0, None, 5))
    assert_same_events(out.trajectory, plain)
    assert out.trajectory.exactness == plain.exactness
    assert out.forwards == plain.nfe


def test_blocks_and_guidance_are_the_wrapped_samplers():
    model = Table(longest=6)
    sampler = sampler_of(model, "llada", 4, 0.7, block_length=2, steps=2, cfg_scale=0.5)
    out = run_driver(LookAhead(n=1), model, RAGGED, sampler)
    assert_same_events(out.trajectory, rollout(model, RAGGED, sampler, row_keys(0, None, 5)))


def objective(model: Table, prompt: list[int], state: tuple[int, ...], chosen: tuple[int, ...]):
    """J of writing the likeliest tokens at the places chosen, and the state after."""
    seen = probabilities(model, prompt, state)
    written = {i: max(range(len(seen[i])), key=lambda v, i=i: seen[i][v]) for i in chosen}
    after = tuple(written.get(i, token) for i, token in enumerate(state))
    return -sum(entropy(seen[i]) for i in chosen) - state_entropy(model, prompt, after), after


@pytest.mark.parametrize(("length", "steps", "name"), [(3, 3, "llada"), (4, 2, "rl"), (4, 4, "entropy")])
@pytest.mark.parametrize("seed", range(2))
def test_of_all_candidates_the_best_is_kept(seed, length, steps, name):
    model = Table(seed=seed, longest=5)
    out = run_driver(WIDE, model, [[1]], sampler_of(model, name, length, 0.0, steps=steps)).trajectory
    state, count, greedy = (3,) * length, length // steps, 0
    for step in steps_of(out)[0]:
        open_now = [i for i, token in enumerate(state) if token == 3]
        values = {chosen: objective(model, [1], state, chosen)[0] for chosen in combinations(open_now, count)}
        best = max(values, key=lambda chosen: values[chosen])
        assert tuple(sorted(place for place, _ in step)) == best
        state = objective(model, [1], state, best)[1]
        assert [(i, state[i]) for i in best] == sorted(step)
        greedy += 1
    assert greedy == steps
    assert out.exactness == "none"


def test_the_look_ahead_changes_the_order():
    found = 0
    for seed in range(6):
        model = Table(seed=seed, longest=4)
        plain = generate(model, [[1]], gen_length=3, sampler="rl")
        out = run_driver(WIDE, model, [[1]], sampler_of(model, temperature=0.0)).trajectory
        found += out.reveal_step.tolist() != plain.reveal_step.tolist()
    assert found >= 2


def test_candidates_differ_in_their_tokens_as_well():
    """Where one position is written, candidates differ in what is drawn there; the surest state afterwards is kept."""
    model = Table(longest=3)
    out = run_driver(LookAhead(n=40, temperature=0.1, sure=1.0), model, [[1]] * 30, sampler_of(model, gen_length=2))
    second = [next(iter(steps[0])) for steps in steps_of(out.trajectory)]
    for place in {place for place, _ in second}:
        states = [tuple(token if i == place else 3 for i in range(2)) for token in range(3)]
        surest = min(range(3), key=lambda token: state_entropy(model, [1], states[token]))
        assert {token for where, token in second if where == place} == {surest}


def test_forwards_are_counted_and_equal_candidates_are_looked_at_once():
    model = Table(longest=6)
    out = run_driver(LookAhead(n=5, temperature=1.0, sure=1.0), model, RAGGED, sampler_of(model, "threshold", 4))
    assert sum(out.forwards) == rows_shown(model)
    assert out.trajectory.nfe < out.forwards
    model = Table(longest=4)
    out = run_driver(WIDE, model, [[1]], sampler_of(model, temperature=0.0))
    assert out.forwards == [1 + 3 + 2] and rows_shown(model) == 6  # the last step leaves nothing to look at
    assert out.trajectory.nfe == [3]


def test_whichever_candidates_are_kept_a_row_has_the_key_of_its_prompt():
    driver = LookAhead(n=6, temperature=5.0, sure=1.0)
    for seed in range(24):
        model = Table(seed=seed, longest=3)
        out = run_driver(driver, model, [[1]], sampler_of(model, "threshold", 2), seed=seed)
        assert out.trajectory.keys.tolist() == row_keys(seed, None, 1).tolist()
        assert out.trajectory.num_steps == out.trajectory.nfe[0]


def test_where_everything_is_sure_nothing_is_tried():
    model = Table(longest=4)
    for table in model.tables.values():
        table[..., 0] += 6.0
    sampler = sampler_of(model, temperature=0.0)
    peak = min(min(max(row) for row in probabilities(model, [1], state)) for state in [(3, 3, 3), (0, 3, 3)])
    assert 0.5 < peak < 1
    assert run_driver(LookAhead(sure=peak - 1e-9), model, [[1]], sampler).forwards == [3]
    plain = generate(model, [[1]], gen_length=3, sampler="rl")
    assert_same_events(run_driver(LookAhead(sure=0.4), model, [[1]], sampler).trajectory, plain)
    assert run_driver(LookAhead(n=80, temperature=50.0, sure=0.9999999), model, [[1]], sampler).forwards == [6]


def test_one_unsure_position_is_enough_to_try():
    model = Table(longest=3)
    model.tables[3][..., :] = torch.tensor([[9.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]])
    out = run_driver(LookAhead(n=60, temperature=50.0), model, [[1]], sampler_of(model, gen_length=2, temperature=0.0))
    assert out.forwards == [1 + 2]


def test_rows_stand_alone_and_given_tokens_stay_and_the_log_replays():
    model = Table(longest=6)
    driver = LookAhead(n=4, temperature=0.5)
    for name in ("llada", "threshold"):
        assert_rows_stand_alone(driver, sampler_of(model, name, 4), model)
    assert_fixed_tokens_stay(driver, sampler_of(model, "llada", 4), model)
    assert_log_replays(run_driver(driver, model, [[1]] * 8, sampler_of(model)).trajectory, model)
    given = run_driver(driver, model, [[1]], sampler_of(model), fixed=[[0, 1, 2]])
    assert given.forwards == [0] and given.trajectory.completions == [[0, 1, 2]]


def test_a_cache_is_forked_with_the_candidates(tiny):
    """Forks of a cache that is out of date on purpose, against forks that recompute everything, one token a block."""
    sampler = sampler_of(tiny, "llada", 4, 1.0, block_length=1)
    keys = row_keys(0, None, 2)
    driver = LookAhead(n=4, temperature=0.5, sure=1.0)
    cached = driver(tiny, [[5, 6, 7], [8]], sampler, keys, policy=make_policy("dual", tiny.spec))
    exact = driver(tiny, [[5, 6, 7], [8]], sampler, keys)
    assert cached.trajectory.completions == exact.trajectory.completions
    assert cached.forwards == exact.forwards


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"temperature": 0.0}, "temperature of the look-ahead is 0.0"),
        ({"temperature": float("inf")}, "temperature of the look-ahead is inf"),
        ({"sure": 0.0}, "sure is 0.0"),
        ({"sure": 1.5}, "sure is 1.5"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(RecipeError, match=message):
        LookAhead(**arguments)
