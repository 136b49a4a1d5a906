"""Best of N: the law of the pick, by enumeration."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
import torch

from dllm_rl.errors import DataError, RecipeError
from dllm_rl.samplers.drivers import drive, make_driver
from dllm_rl.samplers.drivers.best_of import BestOfN
from dllm_rl.samplers.drivers.statistics import path_entropy
from dllm_rl.samplers.generate import generate
from dllm_rl.samplers.presets.request import Request
from tests.samplers.drivers.oracle import (
    IDS,
    RAGGED,
    assert_fixed_tokens_stay,
    assert_log_replays,
    assert_rows_stand_alone,
    assert_same_events,
    denoising_entropy,
    rows_shown,
    run_driver,
    sampler_of,
)
from tests.samplers.oracle import Table, enumerate_rollouts, steps_of

WAYS = [
    {"sampler": "llada", "temperature": 0.0},
    {"sampler": "llada", "temperature": 1.0},
    {"sampler": "rl", "temperature": 0.8, "block_length": 2, "steps": 2},
    {"sampler": "threshold", "temperature": 1.0, "cfg_scale": 0.5},
]


@pytest.mark.parametrize("way", WAYS)
def test_one_rollout_is_plain_sampling(way):
    model, request = Table(longest=6), dict(way)
    name = request.pop("sampler")
    out = drive(model, RAGGED, BestOfN(n=1), Request(4, **request), sampler=name, seed=2, sample_ids=IDS)
    plain = generate(model, RAGGED, gen_length=4, seed=2, sample_ids=IDS, **way)
    assert_same_events(out.trajectory, plain)
    assert out.trajectory.exactness == plain.exactness
    assert out.forwards == plain.nfe
    assert torch.equal(out.trajectory.keys, plain.keys)


def test_the_first_candidate_is_the_plain_rollout_and_the_others_are_not():
    model, sampler = Table(longest=4), sampler_of(Table())
    out = run_driver(BestOfN(n=3), model, [[1]] * 40, sampler)
    plain = generate(model, [[1]] * 40, gen_length=3, sampler="rl", temperature=1.0)
    assert out.candidates.select(range(0, 120, 3)).completions == plain.completions
    for other in (1, 2):
        assert out.candidates.select(range(other, 120, 3)).completions != plain.completions
    assert len(set(out.candidates.keys.tolist())) == 120
    assert out.candidates.exactness == "exact" and out.trajectory.exactness == "none"
    assert out.trajectory.behaviour_logp.isnan().all()


@pytest.mark.parametrize("steps", [3, 2, 1])
def test_the_statistic_is_the_trapezoid_of_the_states_entropies(steps):
    model = Table(longest=4)
    out = run_driver(BestOfN(n=2), model, [[1]] * 10, sampler_of(model, steps=steps))
    expected = [denoising_entropy(model, [1], path, 3) for path in steps_of(out.candidates)]
    torch.testing.assert_close(out.values.flatten().tolist(), expected, rtol=0, atol=1e-12)
    assert out.values.argmin(dim=1).tolist() == out.picked.tolist()
    assert out.trajectory.completions == [
        out.candidates.completions[2 * row + int(place)] for row, place in enumerate(out.picked)
    ]


def test_rows_that_take_fewer_forwards_have_times_of_their_own():
    """Rows of one batch that finish earlier hold NaN afterwards; nothing written means no uncertainty."""
    model = Table(longest=5)
    out = generate(model, [[1]] * 20, sampler="threshold", gen_length=4, temperature=1.0, threshold=0.5)
    with pytest.raises(RecipeError, match="measure_entropy"):
        path_entropy(out)
    out = run_driver(BestOfN(n=2), model, [[1]] * 10, sampler_of(model, "threshold", 4)).candidates
    assert len(set(out.nfe)) > 1
    paths = [tuple(step for step in path if step) for path in steps_of(out)]
    expected = [denoising_entropy(model, [1], path, 4) for path in paths]
    torch.testing.assert_close(path_entropy(out).tolist(), expected, rtol=0, atol=1e-12)
    given = run_driver(BestOfN(n=2), model, [[1], [1]], sampler_of(model), fixed=[[0, 1, 2], [0, None, 2]])
    assert given.values[0].tolist() == [0.0, 0.0] and bool((given.values[1] > 0).all())
    assert given.forwards == [0, 2]


def test_the_law_of_the_pick_is_that_of_the_minimum():
    model = Table(longest=3)
    law = enumerate_rollouts(model, [2], 2, [1, 1], "max_probability")
    value = {path: denoising_entropy(model, [2], path, 2) for path in law}
    expected: dict = defaultdict(float)
    for one, p in law.items():
        for other, q in law.items():
            expected[other if value[other] < value[one] else one] += p * q
    out = run_driver(BestOfN(n=2), model, [[2]] * 8000, sampler_of(model, gen_length=2))
    counts = Counter(steps_of(out.trajectory))
    squared = sum((counts[path] - 8000 * p) ** 2 / (8000 * p) for path, p in expected.items())
    degrees = len(expected) - 1
    assert squared < degrees + 5 * math.sqrt(2 * degrees)
    plain = sum((counts[path] - 8000 * p) ** 2 / (8000 * p) for path, p in law.items())
    assert plain > 20 * degrees


def test_any_statistic_of_a_trajectory_will_do():
    model = Table(longest=4)
    out = run_driver(BestOfN(n=5, by=lambda rollouts: -rollouts.behaviour_logp), model, [[1]] * 6, sampler_of(model))
    assert torch.equal(out.values, -out.candidates.behaviour_logp.view(6, 5))
    assert torch.equal(out.values.gather(1, out.picked[:, None])[:, 0], out.values.amin(dim=1))
    tied = run_driver(BestOfN(n=5, by=lambda rollouts: torch.zeros(30)), model, [[1]] * 6, sampler_of(model))
    assert tied.picked.tolist() == [0] * 6


def test_forwards_of_all_candidates_are_counted():
    model = Table(longest=6)
    out = run_driver(BestOfN(n=3), model, RAGGED, sampler_of(model, "threshold", 4), IDS)
    assert sum(out.forwards) == rows_shown(model) == sum(out.candidates.nfe)
    assert out.forwards == torch.tensor(out.candidates.nfe).view(5, 3).sum(dim=1).tolist()


def test_rows_stand_alone_and_given_tokens_stay_and_the_log_replays():
    model = Table(longest=6)
    for name in ("llada", "threshold"):
        assert_rows_stand_alone(BestOfN(n=3), sampler_of(model, name, 4), model)
    assert_fixed_tokens_stay(BestOfN(n=3), sampler_of(model, "llada", 4), model)
    assert_log_replays(run_driver(BestOfN(n=3), model, [[1]] * 5, sampler_of(model)).trajectory, model)


def test_what_cannot_work_is_refused():
    model = Table(longest=4)
    with pytest.raises(RecipeError, match="n is 0; expected at least 1"):
        BestOfN(n=0)
    with pytest.raises(RecipeError, match="all 2 rollouts of a prompt would be the same"):
        run_driver(BestOfN(n=2), model, [[1]], sampler_of(model, temperature=0.0))
    shuffled = sampler_of(model, "first_hitting", temperature=0.0)
    assert len(run_driver(BestOfN(n=2), model, [[1]], shuffled).candidates) == 2
    with pytest.raises(RecipeError, match="candidate 0 of prompt 1 is NaN"):
        nan = torch.tensor([0.0, 0.0, float("nan"), 0.0])
        run_driver(BestOfN(n=2, by=lambda rollouts: nan), model, [[1], [1]], sampler_of(model))
    with pytest.raises(DataError, match="1 sample_ids for 2 prompts"):
        drive(model, [[1], [1]], BestOfN(), Request(3, temperature=1.0), sample_ids=[1])


def test_drivers_are_made_by_name():
    assert make_driver("best_of_n", {"n": 3}) == BestOfN(n=3)
    for name, options, message in [
        ("best_of", {}, "no driver is called 'best_of'; did you mean 'best_of_n'"),
        ("smc", {"evry": 3}, "driver 'smc' has no option 'evry'; did you mean 'every'"),
        ("smc", {"n": "3"}, "driver 'smc': option n is '3'; expected int"),
        ("smc", {"by": "entropy"}, "option by is 'entropy'"),
        ("mcts", {"simulations": 0}, "simulations is 0"),
    ]:
        with pytest.raises(RecipeError, match=message):
            make_driver(name, options)
    assert make_driver("smc", {"ess": 1, "by": None}) == replace(make_driver("smc", {}), ess=1.0, by=None)
