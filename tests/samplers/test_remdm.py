"""ReMDM: its laws against the paper's posterior, what it preserves, and its limits."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch

from dllm_rl import rng
from dllm_rl.diffusion.trajectory import Op
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.generate import begin, generate, trajectory
from dllm_rl.samplers.loop import advance, run
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.revise.times import Plateau, capped, chances, even_times, rescaled
from dllm_rl.toys.model import tiny_llada
from tests.samplers.oracle import Table
from tests.samplers.remdm_oracle import Sigmas, alphas, logs_of, plateau, rollouts, sigma_max


class Case(NamedTuple):
    """Settings of the preset, and the law that they describe."""

    settings: dict[str, Any]
    alpha: list[float]
    sigmas: Sigmas


def same_for_all(alpha: list[float], of) -> Sigmas:
    return lambda k, psi: [of(k, sigma_max(alpha[k], alpha[k + 1]))] * len(psi)


def by_confidence(alpha: list[float], eta: float) -> Sigmas:
    """Hidden positions have none."""

    def sigmas(k: int, psi: list[float | None]) -> list[float]:
        weight = [0.0 if p is None else math.exp(-p) for p in psi]
        most = eta * sigma_max(alpha[k], alpha[k + 1])
        return [most * w / sum(weight) if w else 0.0 for w in weight]

    return sigmas


def cap(steps: int, eta: float) -> Case:
    alpha = alphas(steps)
    return Case({"mode": "cap", "eta": eta, "steps": steps}, alpha, same_for_all(alpha, lambda k, most: min(eta, most)))


def rescale(steps: int, eta: float) -> Case:
    alpha = alphas(steps)
    settings = {"mode": "rescale", "eta": eta, "steps": steps}
    return Case(settings, alpha, same_for_all(alpha, lambda k, most: eta * most))


def conf(steps: int, eta: float) -> Case:
    return Case({"mode": "conf", "eta": eta, "steps": steps}, alphas(steps), by_confidence(alphas(steps), eta))


def loop(steps: int, eta: float, t_on: float, t_off: float, alpha_on: float) -> Case:
    alpha = plateau(steps, t_on, t_off, alpha_on)
    on = [t_off < 1 - k / steps <= t_on for k in range(steps)]
    settings = {"mode": "loop", "eta": eta, "steps": steps, "t_on": t_on, "t_off": t_off, "alpha_on": alpha_on}
    return Case(settings, alpha, same_for_all(alpha, lambda k, most: min(eta, most) if on[k] else 0.0))


CASES = {
    "cap": cap(4, 0.4),
    "cap that binds": cap(3, 0.9),
    "rescale": rescale(4, 0.6),
    "rescale to the most": rescale(3, 1.0),
    "conf": conf(4, 0.7),
    "conf as published": conf(3, 1.0),
    "loop": loop(4, 0.3, 0.75, 0.25, 0.6),
    "loop with steps across its switches": loop(4, 0.5, 0.8, 0.3, 0.6),
}
TEMPERATURE = 0.7


def made(model, prompts, case: Case, length: int, **more):
    settings = {"sampler": "remdm", "gen_length": length, "temperature": TEMPERATURE, **case.settings, **more}
    return generate(model, prompts, **settings)


def law_of(model, case: Case, start, fixed=frozenset()):
    return rollouts(model, [1], case.alpha, case.sigmas, TEMPERATURE, start, fixed)


@pytest.mark.parametrize("name", CASES)
def test_behaviour_logp_is_the_probability_of_the_rollout(name):
    case, model, steps = CASES[name], Table(longest=4), CASES[name].settings["steps"]
    length = 3 if name == "conf as published" else 2
    law = law_of(model, case, [3] * length)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    out = made(model, [[1]] * 100, case, length, seed=3)
    expected = torch.tensor([law[log] for log in logs_of(out, steps)], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, expected, rtol=0, atol=1e-10)
    assert out.exactness == "exact"
    assert int((out.events.op == Op.REMASK).sum()) > 20


@pytest.mark.parametrize("name", ["cap that binds", "rescale to the most", "conf as published"])
def test_rollouts_come_as_often_as_the_enumeration_says(name):
    case, model, rows = CASES[name], Table(longest=3), 4_000
    law = law_of(model, case, [3] * 2)
    counts = Counter(logs_of(made(model, [[1]] * rows, case, 2), 3))
    assert set(counts) <= set(law)
    common = {log: chance for log, chance in law.items() if rows * chance >= 5}
    rest = 1 - sum(common.values())
    squared = sum((counts[log] - rows * chance) ** 2 / (rows * chance) for log, chance in common.items())
    squared += (rows - sum(counts[log] for log in common) - rows * rest) ** 2 / (rows * rest)
    assert squared < len(common) + 5 * math.sqrt(2 * len(common))


def hidden_shares(law, length: int, steps: int) -> list[float]:
    """Mean share of positions hidden after each step."""
    shares = [0.0] * steps
    for log, chance in law.items():
        hidden = length
        for k, (written, again) in enumerate(log):
            hidden += len(again) - len(written)
            shares[k] += chance * hidden / length
    return shares


@pytest.mark.parametrize("name", CASES)
def test_the_share_hidden_is_what_the_time_says_whatever_is_hidden_again(name):
    """But for "conf", in which the hidden positions do not make up for it: more is hidden on the way."""
    case, steps = CASES[name], CASES[name].settings["steps"]
    shares = hidden_shares(law_of(Table(longest=3), case, [3] * 2), 2, steps)
    rows = 1500
    out = made(Table(longest=3), [[1]] * rows, case, 2)
    seen = [(out.completion_canvas(min(k + 1, out.num_steps)) == 3).double().mean() for k in range(steps)]
    assert [float(share) for share in seen] == pytest.approx(shares, abs=4 * 0.5 / math.sqrt(rows))
    expected = [1 - alpha for alpha in case.alpha[1:]]
    if case.settings["mode"] == "conf":
        assert all(share > time + 0.01 for share, time in zip(shares[1:-1], expected[1:-1], strict=True))
        assert shares[-1] == pytest.approx(0.0, abs=1e-14)
    else:
        assert shares == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 1000])
@pytest.mark.parametrize("eta", [0.0, 0.008, 0.3, 0.7, 1.0])
def test_chances_are_probabilities_that_keep_to_the_times(steps, eta):
    times = even_times(steps)
    switched = Plateau(0.55, 0.05, 0.9)
    steep = Plateau(0.9, 0.1, 0.05)
    for hidden, again in [
        (times, capped(times, eta)),
        (times, rescaled(times, eta)),
        *((plan.hidden(times), plan.again(times, eta)) for plan in (switched, steep)),
    ]:
        both = chances(hidden, again)
        assert len(both.write) == len(both.remask) == steps
        assert all(0 <= chance <= 1 for chance in (*both.write, *both.remask))
        assert (both.write[-1], both.remask[-1], both.remask[0]) == (1.0, 0.0, 0.0)
        share = 1.0
        for k in range(steps):
            share = share * (1 - both.write[k]) + (1 - share) * both.remask[k]
            assert share == pytest.approx(hidden[k + 1], abs=1e-12)


def test_chances_are_those_of_the_papers_formulas():
    for case in (cap(20, 0.15), cap(20, 0.9), rescale(20, 0.3), loop(20, 0.05, 0.55, 0.05, 0.9)):
        options = dict(case.settings)
        request = Request(gen_length=4, steps=options.pop("steps"))
        sampler = make_sampler(Table().spec, "remdm", options, request)
        for k, (a_t, a_s) in enumerate(zip(case.alpha[:-1], case.alpha[1:], strict=True)):
            (sigma,) = case.sigmas(k, [0.5])
            assert sampler.select.chances[k] == pytest.approx((a_s - (1 - sigma) * a_t) / (1 - a_t), abs=1e-12)
            if k:
                assert sampler.revise.chances[k] == pytest.approx(sigma, abs=1e-12)


def test_on_the_plateau_what_is_written_is_exchanged():
    """With the published scripts' values; the step that leaves the plateau still hides."""
    times, plan = even_times(1024), Plateau(0.55, 0.05, 0.9)
    both = chances(plan.hidden(times), plan.again(times, 0.02))
    on = [k for k in range(1024) if times[k] <= 0.55 and times[k + 1] > 0.05]
    assert [k for k, chance in enumerate(both.remask) if chance] == [*on, on[-1] + 1]
    assert {round(both.remask[k], 12) for k in on} == {0.02}
    assert {round(both.write[k], 12) for k in on} == {round(0.02 * 0.9 / 0.1, 12)}


RAGGED = [[1, 0], [2], [], [0, 0], [1]]
IDS = [7, 3, 5, 9, 1]


@pytest.mark.parametrize("mode", ["cap", "rescale", "conf"])
@pytest.mark.parametrize("steps", [3, 4, 7])
def test_with_nothing_hidden_again_it_is_the_ancestral_sampler_bit_for_bit(mode, steps):
    settings = {"gen_length": 4, "steps": steps, "temperature": 0.8, "sample_ids": IDS}
    plain = generate(Table(longest=6), RAGGED, sampler="ancestral", **settings)
    out = generate(Table(longest=6), RAGGED, sampler="remdm", mode=mode, eta=0.0, **settings)
    assert out.completions == plain.completions
    assert torch.equal(out.reveal_step, plain.reveal_step)
    assert torch.equal(out.behaviour_logp, plain.behaviour_logp)
    assert out.nfe == plain.nfe


@pytest.mark.parametrize("name", CASES)
def test_the_log_replays_every_canvas_that_the_model_saw(name):
    model = Table(longest=6)
    out = made(model, RAGGED, CASES[name], 4, sample_ids=IDS)
    assert len(model.seen) == out.num_steps
    for step, canvas in enumerate(model.seen):
        if len(canvas) == len(RAGGED):
            assert torch.equal(out.canvas(step), canvas)
    assert (out.tokens != 3).all()


@pytest.mark.parametrize("name", CASES)
def test_scoring_the_replayed_canvases_gives_the_recorded_log_probabilities(name):
    """Of every token that was written, those hidden again included."""
    model = Table(longest=6)
    out = made(model, RAGGED, CASES[name], 4, sample_ids=IDS)
    events = out.events
    written = (events.op == Op.WRITE).nonzero()[:, 0].tolist()
    sequences = out.sequences()
    for i in written:
        row, step, place = int(events.row[i]), int(events.step[i]), 2 + int(events.position[i])
        canvas = out.canvas(step - 1)
        assert int(canvas[row, place]) == 3
        logits = model.logits(canvas, sequences.attend)[row, place]
        assert out.transform.log_probs(logits)[events.token[i]] == pytest.approx(float(events.logq[i]), abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_row_does_not_depend_on_the_others(name):
    """Rows leave the batch at different steps: some templates leave little to write."""
    model, case = Table(longest=6), CASES[name]
    given = [[None] * 4, [0, 1, 2, None], [None, None, 1, 1], [None] * 4, [2, None, 2, 2]]
    together = made(model, RAGGED, case, 4, sample_ids=IDS, fixed=given)
    order = [3, 0, 4, 1, 2]
    shuffled = made(
        model, [RAGGED[i] for i in order], case, 4, sample_ids=[IDS[i] for i in order], fixed=[given[i] for i in order]
    )
    assert logs_of(shuffled, 4) == logs_of(together.select(order), 4)
    torch.testing.assert_close(shuffled.behaviour_logp, together.select(order).behaviour_logp, rtol=0, atol=1e-12)
    for row in (0, 1, 4):
        alone = made(model, [RAGGED[row]], case, 4, sample_ids=[IDS[row]], fixed=[given[row]])
        assert logs_of(alone, 4) == [logs_of(together, 4)[row]]
        assert alone.nfe == [together.nfe[row]]


@pytest.mark.parametrize("name", ["rescale to the most", "conf as published", "loop"])
def test_what_is_given_is_never_hidden_and_the_likelihood_is_that_of_the_rest(name):
    case, model, steps = CASES[name], Table(longest=5), CASES[name].settings["steps"]
    law = law_of(model, case, [3, 0, 3], frozenset({1}))
    out = made(model, [[1]] * 100, case, 3, fixed=[[None, 0, None]] * 100)
    expected = torch.tensor([law[log] for log in logs_of(out, steps)], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, expected, rtol=0, atol=1e-10)
    again = out.events.position[out.events.op == Op.REMASK]
    assert set(again.tolist()) == {0, 2}


@pytest.mark.parametrize("name", ["rescale to the most", "conf", "loop"])
def test_finished_blocks_stay_as_they_are(name):
    case = CASES[name]
    settings = {**case.settings, "steps": 2 * case.settings["steps"], "block_length": 2}
    model = Table(longest=5)
    out = made(model, [[1]] * 60, case._replace(settings=settings), 4)
    events = out.events
    for row in range(60):
        mine = events.row == row
        first_of_second = int(events.step[mine & (events.position >= 2)].min())
        assert (events.step[mine & (events.position < 2)] < first_of_second).all()
    again = events.op == Op.REMASK
    assert {0, 1, 2, 3} == set(events.position[again].tolist())


@pytest.mark.parametrize("name", ["cap", "conf", "loop"])
def test_a_fork_goes_on_as_the_rollout_would_have(name):
    case, model = CASES[name], Table(longest=6)
    options = dict(case.settings)
    request = Request(gen_length=4, steps=options.pop("steps"), temperature=TEMPERATURE)
    sampler = make_sampler(model.spec, "remdm", options, request)
    keys = rng.sample_keys(0, torch.tensor(IDS))
    whole = made(model, RAGGED, case, 4, sample_ids=IDS)
    state = begin(model, RAGGED, sampler, keys)
    for _ in range(2):
        state = advance(state, sampler, 3)
    index = [2, 0, 0, 4]
    forked = run(state.select(torch.tensor(index)), sampler, 3)
    out = trajectory(forked, [RAGGED[i] for i in index], model, sampler)
    assert logs_of(out, 4) == logs_of(whole.select(index), 4)
    torch.testing.assert_close(out.behaviour_logp, whole.select(index).behaviour_logp, rtol=0, atol=1e-12)


def test_a_full_row_goes_on_while_coins_can_open_it_and_no_longer():
    """All is written at the first step or stays so: with eta 1 everything written is hidden again at the second."""
    model = Table(longest=5)
    out = generate(model, [[1]] * 400, gen_length=1, steps=3, sampler="remdm", mode="rescale", eta=1.0, temperature=1.0)
    first = [step for step, op in zip(out.events.step.tolist(), out.events.op.tolist(), strict=True) if op == Op.REMASK]
    assert set(first) == {2}
    # From t = 2/3 on a hidden position is written for sure, and one written is hidden with probability 1.
    assert set(out.nfe) == {2, 3}
    written_first = torch.zeros(400, dtype=torch.bool)
    written_first[out.events.row[out.events.step == 1]] = True
    assert out.nfe == [3 if early else 2 for early in written_first.tolist()]


@pytest.mark.parametrize("cache", ["prefix", "dual", "dkv", "vicinity"])
def test_caches_see_what_was_hidden_again(cache):
    model = tiny_llada(seed=1)
    settings = {"gen_length": 8, "block_length": 4, "steps": 8, "sampler": "remdm", "mode": "rescale", "eta": 1.0}
    out = generate(model, [[5, 6], [7]], temperature=1.0, cache=cache, **settings)
    assert out.exactness == "approximate_cache" and out.behaviour_logp.isfinite().all()
    assert int((out.events.op == Op.REMASK).sum()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "caps"}, "mode is 'caps'; expected one of cap, rescale, conf, loop"),
        ({"eta": 1.5}, "eta is 1.5; expected a probability"),
        ({"eta": -0.1}, "eta is -0.1"),
        ({"eta": math.nan}, "eta is nan"),
        ({"t_on": 0.5}, "t_on is 0.5 and mode 'cap' has no loop"),
        ({"mode": "loop", "alpha_on": 1.0}, "alpha_on is 1.0; expected a number between 0 and 1"),
        ({"mode": "loop", "t_off": 0.0}, "t_off is 0.0"),
        ({"mode": "loop", "t_off": 0.6}, "t_off is 0.6 and t_on 0.55; time falls"),
        ({"mode": "loop", "t_on": 0.05}, "t_off is 0.05 and t_on 0.05"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        generate(Table(longest=5), [[1]], gen_length=4, temperature=1.0, sampler="remdm", **options)


def test_the_scripts_values_are_the_defaults():
    def coins(**options):
        request = Request(gen_length=8, steps=40)
        return make_sampler(Table().spec, "remdm", options, request)

    for mode, eta in [("cap", 0.008), ("rescale", 0.015), ("conf", 1.0), ("loop", 0.02)]:
        assert coins(mode=mode) == coins(mode=mode, eta=eta)
    assert coins(mode="loop") == coins(mode="loop", t_on=0.55, t_off=0.05, alpha_on=0.9)
    assert coins() == coins(mode="cap")
