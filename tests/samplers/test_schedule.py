"""Steps planned by a schedule head: the manual sampler bit for bit where it says nothing, else the law of its draws."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dllm_rl import rng
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import ModelContractError, RecipeError
from dllm_rl.models.policy_head import attach_head
from dllm_rl.samplers.canvas import Canvas, blank_canvas
from dllm_rl.samplers.generate import generate, rollout
from dllm_rl.samplers.names import FEATURES
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.schedule import ByThreshold, softened
from dllm_rl.toys.families import tiny_llada2
from tests.samplers.oracle import Table
from tests.samplers.schedules import EXPLORING, Scheduling, explorer, logit, probability_from_scratch


def same_rollouts(one: Trajectory, other: Trajectory) -> None:
    assert one.nfe == other.nfe
    assert one.exactness == other.exactness
    for name in ("row", "step", "position", "op", "token", "logq", "logp", "conf"):
        a, b = getattr(one.events, name), getattr(other.events, name)
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(one.behaviour_logp, other.behaviour_logp, rtol=0, atol=0, equal_nan=True)


MANUAL = [
    ({"sampler": "rl", "steps": 2}, {"learned": "commit"}),
    ({"sampler": "rl", "steps": 3}, {"learned": "commit temperature"}),
    ({"sampler": "rl", "steps": 4, "block_length": 2}, {"learned": "temperature"}),
    ({"sampler": "rl", "cfg_scale": 0.7}, {"learned": "commit cfg_scale"}),
    ({"sampler": "rl", "temperature": 0.0}, {"learned": "commit temperature"}),
    (
        {"sampler": "threshold", "order": "max", "threshold": 0.45},
        {"learned": "commit temperature", "commit": "threshold"},
    ),
    ({"sampler": "threshold", "order": "max", "threshold": 0.9}, {"learned": "temperature", "commit": "threshold"}),
    (
        {"sampler": "threshold", "order": "max", "threshold": 0.9, "cfg_scale": 0.3},
        {"learned": "cfg_scale", "commit": "threshold"},
    ),
]


@pytest.mark.parametrize(("manual", "learned"), MANUAL, ids=str)
def test_a_new_head_that_explores_nothing_is_the_manual_sampler_bit_for_bit(manual, learned):
    prompts, way = [[1], [], [2, 0], [1, 1]] * 8, {"gen_length": 4, "temperature": 0.7, "seed": 5, **manual}
    planned = {key: value for key, value in way.items() if key != "order"} | {"sampler": "schedule", **learned}
    model = Scheduling(actions=len(learned["learned"].split()))
    expected = generate(model, prompts, **way)
    found = generate(model, prompts, **planned)
    same_rollouts(found, expected)
    assert found.schedule is not None and found.schedule.action.abs().max() == 0
    assert found.schedule.logp.abs().max() == 0


def test_an_action_of_zero_is_the_manual_value_and_not_what_a_link_and_its_inverse_make_of_it():
    zero, manual = torch.zeros(1, dtype=torch.float64), [k / 37 for k in range(1, 37)]
    there_and_back = [
        (float(torch.nn.functional.softplus(zero + math.log(math.expm1(value)))) != value) for value in manual
    ]
    assert any(there_and_back), "rounding should show somewhere"
    assert [float(softened(value, zero)) for value in manual] == manual
    assert float(softened(0.0, zero)) == 0.0 and float(softened(0.0, zero + 1)) == 0.0
    found = [ByThreshold(value).rule(zero, None, blank()) for value in manual]
    assert [float(each.select.level) for each in found] == [math.log(value) for value in manual]
    assert [float(each.value) for each in found] == pytest.approx(manual, abs=1e-15)


def blank() -> Canvas:
    model = Table(longest=4)
    return blank_canvas(model, [[1]], torch.zeros(1, 3, dtype=torch.int64), rng.sample_keys(0, torch.arange(1)))


@pytest.mark.parametrize("way", EXPLORING, ids=str)
def test_the_recorded_log_probability_is_that_of_draws_order_and_actions(way):
    model = explorer(way)
    out = generate(model, [[1], [2], [0]] * 10, sampler="schedule", gen_length=4, temperature=0.7, **way)
    assert out.exactness == "exact"
    assert len(set(out.nfe)) > 1 or way["learned"] == "temperature"
    expected = [probability_from_scratch(out, row, model, way, 0.7) for row in range(len(out))]
    torch.testing.assert_close(out.behaviour_logp, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)


def test_actions_are_normal_around_what_the_head_says():
    """Kolmogorov-Smirnov on the first steps' actions; and the counts they lead to are as frequent as the links say."""
    model = explorer({"learned": "commit"})
    out = generate(model, [[1]] * 4000, sampler="schedule", gen_length=4, temperature=1.0, sigma=0.8)
    mean = (out.schedule.features[0, 0] @ model.weight + model.bias).item()
    u = torch.distributions.Normal(mean, 0.8).cdf(out.schedule.action[:, 0, 0]).sort().values
    place = torch.arange(1, 4001) / 4000
    assert float((u - place).abs().max()) < 1.63 / math.sqrt(4000)  # one in a hundred
    wrote = torch.bincount((out.reveal_step == 1).sum(dim=1), minlength=5)[1:] / 4000
    edges = [logit(k / 4) - logit(1 / 4) for k in (1.5, 2.5, 3.5)]
    cdf = [0.0, *torch.distributions.Normal(mean, 0.8).cdf(torch.tensor(edges)).tolist(), 1.0]
    for k in range(4):
        assert float(wrote[k]) == pytest.approx(cdf[k + 1] - cdf[k], abs=0.025)


def test_features_are_statistics_of_the_open_positions():
    model = explorer({"learned": "commit"})
    way = {"sampler": "schedule", "gen_length": 4, "steps": 4, "block_length": 2, "temperature": 1.0, "sigma": 0.7}
    out = generate(model, [[1], [2]], **way)
    for row in range(2):
        for step in range(out.nfe[row]):
            completion = out.completion_canvas(step)[row].tolist()
            hidden = [i for i, token in enumerate(completion) if token == 3]
            open_now = [i for i in hidden if i // 2 == hidden[0] // 2]
            logp = model.logits(torch.tensor([[*out.prompts[row], *completion]]))[0, 1:, :3].log_softmax(-1)[open_now]
            expected = [len(open_now) / 2, len(hidden) / 4, step / 4]
            for values in (logp.amax(-1), -(logp.exp() * logp).sum(-1)):
                quantiles = torch.quantile(values, torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64))
                expected += [float(values.mean()), *quantiles.tolist()]
            torch.testing.assert_close(out.schedule.features[row, step].tolist(), expected, rtol=0, atol=1e-12)
            assert len(expected) == len(FEATURES)


def test_a_row_decides_the_same_whatever_stands_beside_it():
    way = EXPLORING[1]
    model = explorer(way)
    prompts = [[1], [2, 0], [], [1, 1]]
    together = generate(model, prompts, sampler="schedule", gen_length=4, temperature=0.7, seed=2, **way)
    for row, prompt in enumerate(prompts):
        alone = generate(
            model, [prompt], sampler="schedule", gen_length=4, temperature=0.7, seed=2, sample_ids=[row], **way
        )
        same_rollouts(alone, together.select([row]))
        for name in ("features", "action", "logp", "commit", "temperature"):
            mine, theirs = getattr(alone.schedule, name), getattr(together.schedule, name)[[row]]
            assert torch.equal(mine, theirs[:, : alone.num_steps])
            assert not theirs[:, alone.num_steps :].any()


def test_trajectories_carry_what_was_decided():
    way = {"learned": "commit temperature cfg_scale", "cfg_scale": 0.5, "sigma": 2.5}
    model = explorer(way)
    parts = [
        generate(model, [[1]] * 3, sampler="schedule", gen_length=4, temperature=0.7, seed=seed, **way).select([2, 0])
        for seed in (4, 5, 6)
    ]
    joined = Trajectory.concatenate([parts[0], replace(parts[1], keys=parts[1].keys + 1), parts[2]])
    torch.testing.assert_close(joined.behaviour_logp, torch.cat([part.behaviour_logp for part in parts]))
    assert len({part.num_steps for part in parts}) > 1, "some are to be lengthened"
    assert joined.schedule.logp.shape == joined.selection_logp.shape == (6, joined.num_steps)
    after = torch.arange(joined.num_steps) >= torch.tensor(joined.nfe)[:, None]
    assert not joined.schedule.action[after].any() and not joined.schedule.logp[after].any()
    back = joined.select([4, 5])
    steps = parts[2].num_steps
    for name in ("features", "action", "logp", "commit", "temperature", "cfg_scale"):
        assert torch.equal(getattr(back.schedule, name)[:, :steps], getattr(parts[2].schedule, name))
    other = replace(parts[1], schedule=replace(parts[1].schedule, sigma=0.1))
    with pytest.raises(ValueError, match="sampled in 2 ways"):
        Trajectory.concatenate([parts[0], other])


def test_exploration_falls_with_the_updates_made():
    model = Scheduling()
    options = {"sigma": 0.6, "sigma_end": 0.1, "sigma_updates": 10}
    sampler = make_sampler(model.spec, "schedule", options, Request(gen_length=4, temperature=1.0))
    keys = rng.sample_keys(0, torch.arange(2))
    for update, sigma in ((0, 0.6), (1, 0.55), (10, 0.1), (99, 0.1)):
        out = rollout(model, [[1], [1]], sampler, keys, update)
        assert out.schedule.sigma == pytest.approx(sigma)
        normal = torch.distributions.Normal(0.0, sigma).log_prob(out.schedule.action[:, 0]).sum(-1)
        torch.testing.assert_close(out.schedule.logp[:, 0], normal)


def test_a_forked_rollout_keeps_what_was_decided():
    from dllm_rl.samplers.drivers.ahead import LookAhead

    way = EXPLORING[0]
    model = explorer(way)
    sampler = make_sampler(model.spec, "schedule", way, Request(gen_length=4, temperature=1.0))
    out = LookAhead(n=3)(model, [[1], [2]], sampler, rng.sample_keys(0, torch.arange(2))).trajectory
    assert out.schedule is not None and out.schedule.action.shape[:2] == out.selection_logp.shape
    assert (out.schedule.action[:, 0] != 0).all()


@pytest.mark.parametrize(
    ("options", "more", "complaint"),
    [
        ({"learned": "comit"}, {}, "learned names 'comit'; expected some of commit, temperature"),
        ({"learned": ""}, {}, "at least one parameter, each once"),
        ({"learned": "commit commit"}, {}, "at least one parameter, each once"),
        ({"commit": "quota"}, {}, "commit is 'quota'; expected 'share' or 'threshold'"),
        ({"learned": "cfg_scale"}, {}, "learned names cfg_scale and cfg_scale is 0"),
        ({"learned": "ranking_temperature"}, {}, "learned names ranking_temperature and ranking_temperature is 0"),
        ({"commit": "threshold", "ranking_temperature": 0.1}, {}, "in any order; leave it out"),
        ({"commit": "threshold", "threshold": 1.0}, {}, "threshold is 1, from which no action moves it"),
        ({"commit": "threshold", "threshold": 0.0}, {}, "threshold is 0.0; expected a probability"),
        ({"commit": "threshold"}, {"steps": 2}, "leave steps out"),
        ({"sigma": -0.1}, {}, "sigma is -0.1; expected a finite number, at least 0"),
        ({"sigma_updates": 0}, {}, "sigma_updates is 0; expected at least 1"),
    ],
)
def test_nonsense_is_refused(options, more, complaint):
    with pytest.raises(RecipeError, match=complaint):
        generate(Scheduling(), [[1]], sampler="schedule", gen_length=4, temperature=1.0, **options, **more)


def test_a_model_must_have_a_head_for_what_is_learned():
    with pytest.raises(ModelContractError, match="the model has no schedule head"):
        generate(Table(longest=5), [[1]], sampler="schedule", gen_length=4)
    with pytest.raises(ModelContractError, match="decides 1 numbers and the sampler's option `learned` names 2"):
        generate(Scheduling(), [[1]], sampler="schedule", gen_length=4, learned="commit temperature")


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_a_real_network_with_a_new_head_is_the_manual_sampler_bit_for_bit_too(tiny, cfg_scale):
    learned = "commit temperature" + (" cfg_scale" if cfg_scale else "")
    attach_head(tiny.network, {"type": "schedule", "features": len(FEATURES), "actions": len(learned.split())})
    way = {"gen_length": 8, "steps": 3, "temperature": 0.7, "cfg_scale": cfg_scale}
    expected = generate(tiny, [[5, 6, 7], [9]], sampler="rl", **way)
    same_rollouts(generate(tiny, [[5, 6, 7], [9]], sampler="schedule", learned=learned, **way), expected)


def test_a_head_that_was_made_for_other_statistics_says_so(tiny):
    attach_head(tiny.network, {"type": "schedule", "features": 8, "actions": 1})
    with pytest.raises(ModelContractError, match="made for 8 features and is shown 15"):
        generate(tiny, [[5]], sampler="schedule", gen_length=4)


def test_a_model_without_a_head_says_so(tiny):
    with pytest.raises(ModelContractError, match="needs a schedule head"):
        generate(tiny, [[5]], sampler="schedule", gen_length=4)


def test_a_cache_shows_the_schedule_the_same_where_it_is_exact():
    """Both forwards of a guided step go through a cache of their own."""
    model = tiny_llada2()
    attach_head(model.network, {"type": "schedule", "features": len(FEATURES), "actions": 2})
    way = {"sampler": "schedule", "learned": "commit cfg_scale", "cfg_scale": 0.7, "sigma": 0.8, "temperature": 1.0}
    prompts, length = [[5, 6, 7], [9]], 2 * model.spec.block_size
    plain = generate(model, prompts, gen_length=length, **way)
    cached = generate(model, prompts, gen_length=length, cache="block", **way)
    assert cached.completions == plain.completions
    torch.testing.assert_close(cached.schedule.cfg_scale, plain.schedule.cfg_scale)
    torch.testing.assert_close(cached.behaviour_logp, plain.behaviour_logp, rtol=0, atol=1e-3)
