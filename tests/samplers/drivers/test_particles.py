"""Sequential Monte Carlo against the sum over all rollouts of their probability times their potentials."""

from __future__ import annotations

import math
from collections import defaultdict
from functools import cache
from itertools import pairwise

import pytest
import torch

from dllm_rl import rng
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.drivers.best_of import BestOfN
from dllm_rl.samplers.drivers.particles import Particles, Smc
from dllm_rl.samplers.drivers.potential import EntropyTilt, LinearTilt
from dllm_rl.samplers.drivers.resample import at, effective_sample_size, log_mean, multinomial, systematic
from dllm_rl.samplers.generate import row_keys
from tests.samplers.drivers.oracle import (
    assert_fixed_tokens_stay,
    assert_log_replays,
    assert_rows_stand_alone,
    assert_same_events,
    rows_shown,
    run_driver,
    sampler_of,
    state_entropy,
    states,
)
from tests.samplers.oracle import Table, enumerate_rollouts, steps_of, text_of

STRENGTH = 6.0


def tilt(model: Table, prompt: list[int], state: tuple[int, ...], form: str = "max") -> float:
    """The published potential of a state over its value where everything is certain, from the paper's formulas."""
    certain = 1 - state_entropy(model, prompt, state) / math.log(model.size)
    if form == "max":
        return math.exp(STRENGTH * certain) / math.exp(STRENGTH)
    return (1 + STRENGTH * certain) / (1 + STRENGTH)


def path_weight(model: Table, path, length: int, every: int, form: str = "max") -> float:
    """The product of the potentials of the states after `every`, 2 `every`, ... forwards that are not finished."""
    visited = states(path, length, model.spec.mask_id)[:-1]
    return math.prod(tilt(model, [2], state, form) for state in visited[every::every])


def measure(model: Table, out: Particles) -> tuple[torch.Tensor, dict]:
    """Of each prompt, the estimate of the normalising constant and of the target's unnormalised mass per text."""
    total = out.log_normaliser.exp()
    share = out.log_weights.softmax(dim=1)
    masses: dict = defaultdict(lambda: torch.zeros_like(total))
    for place, text in enumerate(map(tuple, out.candidates.completions)):
        row, particle = divmod(place, share.shape[1])
        masses[text][row] += total[row] * share[row, particle]
    return total, masses


def close(values: torch.Tensor, expected: float) -> bool:
    """Within 4.5 standard errors of the mean."""
    return abs(float(values.mean()) - expected) < 4.5 * float(values.std()) / math.sqrt(len(values))


@pytest.mark.parametrize(
    ("resampling", "ess", "every", "tilted"),
    [
        ("systematic", 0.7, 1, EntropyTilt(STRENGTH)),
        ("multinomial", 1.0, 1, LinearTilt(STRENGTH)),
        ("systematic", 1.0, 2, EntropyTilt(STRENGTH)),
    ],
)
def test_the_normalising_constant_and_every_texts_mass_are_unbiased(resampling, ess, every, tilted):
    model = Table(longest=4)
    law = enumerate_rollouts(model, [2], 3, [1, 1, 1], "max_probability")
    form = "max" if isinstance(tilted, EntropyTilt) else "mean"
    exact: dict = defaultdict(float)
    for path, chance in law.items():
        exact[text_of(path)] += chance * path_weight(model, path, 3, every, form)
    driver = Smc(n=3, potential=tilted, every=every, ess=ess, resampling=resampling)
    out = run_driver(driver, model, [[2]] * 2500, sampler_of(model))
    fired = torch.stack([point.resampled for point in out.checkpoints]).double().mean()
    assert fired > 0.05 and (ess == 1 or fired < 0.95)
    total, masses = measure(model, out)
    assert close(total, sum(exact.values()))
    assert set(masses) <= set(exact)
    assert all(close(masses[text], mass) for text, mass in exact.items() if mass > 1e-3 * sum(exact.values()))
    plain: dict = defaultdict(float)
    for path, chance in law.items():
        plain[text_of(path)] += chance * sum(exact.values())
    assert not all(close(masses[text], mass) for text, mass in plain.items() if mass > 0.01 * float(total.mean()))


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_telescope_and_ancestors_lead_to_the_states_that_were_weighed(seed):
    """Every potential recorded is that of the state in its descendants' own logs."""
    model = Table(longest=5)
    driver = Smc(n=4, potential=EntropyTilt(STRENGTH), every=1, ess=0.95)
    out = run_driver(driver, model, [[2]] * 60, sampler_of(model, gen_length=4), seed=seed)
    assert [point.step for point in out.checkpoints] == [1, 2, 3]
    carried, factors = torch.zeros(60, 4).double(), torch.zeros(60).double()
    kept = 0
    for point in out.checkpoints:
        torch.testing.assert_close(point.log_weights, carried + point.log_potential, rtol=0, atol=1e-12)
        weights = point.log_weights.exp()
        sizes = weights.sum(1) ** 2 / (weights**2).sum(1)
        assert point.resampled.tolist() == (sizes < 0.95 * 4).tolist()
        assert (point.ancestors[~point.resampled] == torch.arange(4)).all()
        factors += weights.mean(1).log() * point.resampled
        carried = torch.where(point.resampled[:, None], 0.0, point.log_weights)
        kept += int((~point.resampled & (point.log_weights != 0).any(1)).sum())
    assert 20 < kept < 160
    torch.testing.assert_close(out.log_weights, carried, rtol=0, atol=1e-12)
    torch.testing.assert_close(out.log_normaliser, factors + carried.exp().mean(1).log(), rtol=0, atol=1e-12)
    assert_keys_are_named(out, row_keys(seed, None, 60))
    for place, path in enumerate(steps_of(out.candidates)):
        row, particle = divmod(place, 4)
        visited = states(path, 4, 3)
        for point in reversed(out.checkpoints):
            particle = int(point.ancestors[row, particle])
            found = float(point.log_potential[row, particle].exp())
            assert found == pytest.approx(tilt(model, [2], visited[point.step]), abs=1e-12)


def assert_keys_are_named(out: Particles, keys: torch.Tensor) -> None:
    """One number for each resampling; copies take new keys, and particles of other prompts keep theirs."""
    index = torch.arange(4)
    expected = torch.stack([keys, *(rng.fold(keys, "candidate", torch.tensor(i)) for i in (1, 2, 3))], dim=1)
    for point in out.checkpoints:
        offset = rng.uniform(rng.fold(keys, "resample", point.step), 1)
        shares = point.log_weights.softmax(dim=1).cumsum(dim=1)
        naive = ((index + offset) / 4)[:, :, None] >= shares[:, None, :-1]
        fired = point.resampled[:, None]
        assert torch.equal(point.ancestors, torch.where(fired, naive.sum(dim=2), index))
        fresh = torch.stack([rng.fold(keys, "particle", point.step, torch.tensor(i)) for i in range(4)], dim=1)
        expected = torch.where(fired, fresh, expected)
    assert torch.equal(out.candidates.keys.view(60, 4), expected)


def test_where_the_last_unfinished_particle_is_dropped_nothing_more_is_done():
    model, found = Table(longest=5), 0
    heavy = Smc(n=4, potential=lambda sight, canvas, _: torch.full((4,), -60.0), every=1, ess=1.0)
    for seed in range(16):
        out = run_driver(heavy, model, [[1]], sampler_of(model, "threshold", 4), seed=seed)
        assert out.candidates.num_steps == max(out.candidates.nfe)
        found += bool(out.checkpoints[-1].resampled) and set(out.checkpoints[-1].log_potential[0].tolist()) > {0.0}
    assert found >= 2


def test_a_potential_that_is_constant_is_plain_sampling():
    model = Table(longest=5)
    sampler = sampler_of(model, "llada", 4)
    driver = Smc(n=4, potential=lambda sight, canvas, _: torch.full((80,), 0.3).double(), every=1, ess=1.0)
    out = run_driver(driver, model, [[1]] * 20, sampler)
    plain = run_driver(BestOfN(n=4), model, [[1]] * 20, sampler)
    assert not any(bool(point.resampled.any()) for point in out.checkpoints)
    torch.testing.assert_close(out.log_weights, torch.full((20, 4), 0.9).double())
    torch.testing.assert_close(out.log_normaliser, torch.full((20,), 0.9).double())
    assert_same_events(out.candidates, plain.candidates)
    assert_same_events(out.trajectory, plain.trajectory)
    assert out.forwards == plain.forwards == [16] * 20


def test_no_strength_is_a_constant_potential():
    model = Table(longest=4)
    for tilted in (EntropyTilt(0.0), LinearTilt(0.0)):
        out = run_driver(Smc(n=3, potential=tilted, every=1, ess=1.0), model, [[1]] * 5, sampler_of(model))
        assert out.log_weights.tolist() == [[0.0] * 3] * 5


def test_the_released_double_exponential_is_another_weighting():
    """Shares of two particles, as the paper has them and as the code has them."""
    model = Table(longest=4)
    out = run_driver(Smc(n=2, potential=EntropyTilt(5.0), every=1, ess=1e-9), model, [[2]] * 50, sampler_of(model))
    point = out.checkpoints[0]
    certain = 1 + point.log_potential / 5.0
    potential = (5.0 * certain).exp()
    paper = potential / potential.sum(dim=1, keepdim=True)
    torch.testing.assert_close(point.log_weights.softmax(dim=1), paper, rtol=0, atol=1e-12)
    released = potential.softmax(dim=1)
    assert float((released - paper).abs().max()) > 0.2
    close_pair = torch.tensor([0.90, 0.91]).double() * 5.0
    assert close_pair.softmax(0).tolist() == pytest.approx([0.4875, 0.5125], abs=1e-4)
    assert close_pair.exp().softmax(0).tolist() == pytest.approx([0.0099, 0.9901], abs=2e-3)


def past(out: Trajectory, steps: int) -> list[list[tuple]]:
    rows: list[list[tuple]] = [[] for _ in range(len(out))]
    events = out.events
    for i in range(len(events.row)):
        if int(events.step[i]) <= steps:
            rows[int(events.row[i])].append(
                (int(events.step[i]), int(events.position[i]), int(events.token[i]), float(events.logq[i]))
            )
    return rows


def test_forks_share_the_past_and_part_afterwards():
    model = Table(longest=7)
    driver = Smc(n=4, potential=EntropyTilt(20.0), every=3, ess=1.0)
    out = run_driver(driver, model, [[2]] * 30, sampler_of(model, gen_length=5))
    (point,) = out.checkpoints
    shared, parted = 0, 0
    early, late = past(out.candidates, 3), past(out.candidates, 5)
    for row in range(30):
        for one, other in pairwise(range(4)):
            if bool(point.resampled[row]) and point.ancestors[row, one] == point.ancestors[row, other]:
                shared += 1
                assert early[4 * row + one] == early[4 * row + other]
                parted += late[4 * row + one] != late[4 * row + other]
    assert point.step == 3
    assert shared > 20 and parted > 0.25 * shared
    # Copies whose place among the particles did not change get new random numbers as well.
    assert not torch.isin(out.candidates.keys.view(30, 4)[point.resampled], out_keys(model)).any()


@cache
def out_keys(model_: Table | None) -> torch.Tensor:
    model = Table(longest=7)
    return run_driver(BestOfN(n=4), model, [[2]] * 30, sampler_of(model, gen_length=5)).candidates.keys


def test_finished_particles_are_not_weighed_and_group_members_do_not_meet_other_groups():
    model = Table(longest=6)
    asked: list[torch.Tensor] = []

    def potential(sight, canvas, sampler):
        asked.append(canvas.finished)
        return EntropyTilt(3.0)(sight, canvas, sampler) - 0.7

    driver = Smc(n=4, potential=potential, every=1, ess=0.5)
    out = run_driver(driver, model, [[1], [2, 0], []] * 4, sampler_of(model, "threshold", 4))
    assert any(bool(finished.any()) for finished in asked)
    for finished, point in zip(asked, out.checkpoints, strict=True):
        assert ((point.log_potential == 0) == finished.view(-1, 4)).all()
    assert_rows_stand_alone(driver_of("threshold"), sampler_of(model, "threshold", 4), model)
    assert_rows_stand_alone(driver_of("llada"), sampler_of(model, "llada", 4), model)


def driver_of(name: str) -> Smc:
    return Smc(n=3, potential=EntropyTilt(8.0), every=1, ess=0.9, by=None if name == "llada" else Smc().by)


def test_a_finished_state_has_potential_one():
    """Of equally certain rollouts those that finish early are neither favoured nor held back."""
    model = Table(longest=4)
    for table in model.tables.values():
        table[..., 0] += 60.0
    for tilted in (EntropyTilt(5.0), LinearTilt(5.0)):
        out = run_driver(Smc(n=2, potential=tilted, every=1), model, [[1]], sampler_of(model))
        torch.testing.assert_close(out.log_normaliser, torch.zeros(1).double(), rtol=0, atol=1e-12)


def test_the_pick_is_the_path_of_least_entropy_or_drawn_by_weight():
    model = Table(longest=4)
    out = run_driver(driver_of("threshold"), model, [[1]] * 30, sampler_of(model))
    values = Smc().by(out.candidates).view(30, 3)
    assert out.picked.tolist() == values.argmin(dim=1).tolist()
    assert out.trajectory.completions == [out.candidates.completions[3 * i + int(k)] for i, k in enumerate(out.picked)]
    assert out.trajectory.exactness == out.candidates.exactness == "none"
    driver = Smc(n=3, potential=EntropyTilt(8.0), every=1, ess=1e-9, by=None)
    out = run_driver(driver, model, [[1]] * 2000, sampler_of(model))
    share = out.log_weights.softmax(dim=1)
    for particle in range(3):
        surplus = (out.picked == particle).double() - share[:, particle]
        assert close(surplus, 0.0)
    assert float(share.amax(dim=1).mean()) > 0.5


def test_one_particle_is_plain_sampling():
    model = Table(longest=4)
    out = run_driver(Smc(n=1, every=1, ess=1.0), model, [[1]] * 9, sampler_of(model))
    plain = run_driver(BestOfN(n=1), model, [[1]] * 9, sampler_of(model))
    assert_same_events(out.trajectory, plain.trajectory)
    assert out.trajectory.exactness == "exact"


def test_forwards_are_those_that_the_model_saw():
    model = Table(longest=6)
    out = run_driver(driver_of("threshold"), model, [[1]] * 10, sampler_of(model, "threshold", 4))
    assert any(bool(point.resampled.any()) for point in out.checkpoints)
    assert sum(out.forwards) == rows_shown(model)


def test_given_tokens_stay_and_the_log_replays():
    model = Table(longest=6)
    assert_fixed_tokens_stay(driver_of("threshold"), sampler_of(model, "llada", 4), model)
    assert_log_replays(run_driver(driver_of("llada"), model, [[1]] * 8, sampler_of(model)).candidates, model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"every": 0}, "every is 0"),
        ({"ess": 0.0}, "ess is 0.0"),
        ({"ess": 1.1}, "ess is 1.1"),
        ({"resampling": "residual"}, "resampling is 'residual'; expected one of systematic, multinomial"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(RecipeError, match=message):
        Smc(**arguments)


def test_potentials_that_cannot_weigh_are_refused():
    model = Table(longest=4)
    for strength in (-1.0, float("inf"), float("nan")):
        for tilted in (EntropyTilt, LinearTilt):
            with pytest.raises(RecipeError, match="strength is"):
                tilted(strength)
    for wrong in (float("nan"), float("-inf"), float("inf")):
        values = torch.tensor([0.0, 0.0, wrong, wrong]).double()
        driver = Smc(n=2, potential=lambda sight, canvas, sampler, values=values: values, every=1)
        with pytest.raises(RecipeError, match="particles of prompt 1 cannot be weighed after 1 forwards"):
            run_driver(driver, model, [[1], [1]], sampler_of(model))
    dead = torch.tensor([float("-inf"), 0.0]).double()
    driver = Smc(n=2, potential=lambda sight, canvas, sampler: dead, every=2, ess=1.0)
    out = run_driver(driver, model, [[1]], sampler_of(model))
    assert out.checkpoints[0].ancestors.tolist() == [[1, 1]]
    assert float(out.log_normaliser.exp()) == pytest.approx(0.5)
    with pytest.raises(RecipeError, match="all 8 rollouts"):
        run_driver(Smc(), model, [[1]], sampler_of(model, temperature=0.0))


def test_effective_sample_sizes_and_means():
    weights = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0], [1.0, 0.0, 0.0]]).double()
    assert effective_sample_size(weights.log() + 700.0).tolist() == pytest.approx([3.0, 16 / 6, 1.0])
    assert effective_sample_size(torch.full((1, 7), -0.1).double()).tolist() == [7.0]
    assert log_mean(weights.log()).exp().tolist() == pytest.approx([1.0, 4 / 3, 1 / 3])


def test_points_fall_into_shares():
    log_weights = torch.tensor([[0.5, 0.25, 0.0, 0.25]]).double().log() - 3.0
    points = torch.tensor([[0.0, 0.49, 0.5, 0.74, 0.75, 0.99]]).double()
    assert at(points, log_weights).tolist() == [[0, 0, 1, 1, 3, 3]]


def test_systematic_copies_are_the_expectation_rounded_and_both_schemes_are_unbiased():
    share = torch.tensor([0.45, 0.05, 0.27, 0.23]).double()
    keys = torch.arange(8000)
    for scheme in (systematic, multinomial):
        points = scheme(keys, 5)
        assert bool(((points >= 0) & (points < 1)).all())
        chosen = at(points, share.log().expand(8000, 4))
        counts = torch.stack([(chosen == i).sum(dim=1) for i in range(4)], dim=1).double()
        assert all(close(counts[:, i], 5 * float(share[i])) for i in range(4))
        rounded = (counts >= (5 * share).floor()) & (counts <= (5 * share).ceil())
        assert bool(rounded.all()) == (scheme is systematic)
