"""Presets that differ in the order of writing: their laws against the enumeration of plain rules."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.generate import generate
from tests.samplers.needs import FREQUENCY, NEEDS, UNSEEN
from tests.samplers.oracle import Exact, Table, total_variation
from tests.samplers.order_oracle import (
    Moment,
    Rule,
    by_blind,
    by_coin,
    by_drawn,
    by_softmax,
    ordered_steps_of,
    rollouts,
    texts,
)

EOS = 2


class Case(NamedTuple):
    """Settings of a preset and the rule that they describe."""

    settings: dict[str, Any]
    rule: Rule
    blocks: list[int]
    temperature: float = 0.7


def even(steps: int):
    return lambda at: at.length // steps + (at.turn < at.length % steps)


def whatever(count):
    return lambda at, scores: count(at)


def ascending(steps: int):
    return lambda at: 2**at.step if at.step < steps - 1 else len(at.places)


def margin(at: Moment, i: int, of: str = "p") -> float:
    first, second = sorted(getattr(at, of)[i])[-1:-3:-1]
    return first - second


def negative_entropy(at: Moment, i: int, of: str = "p") -> float:
    return sum(p * math.log(p) for p in getattr(at, of)[i] if p)


def frequency(v: int) -> float:
    return FREQUENCY.get(v, UNSEEN)


def calibrated(at: Moment, i: int, v: int, alpha: float) -> float:
    return min(-at.p[i][v] * math.log(frequency(v)), alpha)


def position_aware(lambd: float, alpha: float):
    return lambda at, i, v: math.exp(-lambd * at.places[i]) * calibrated(at, i, v, alpha)


def linear_position(lambd: float, alpha: float):
    def score(at: Moment, i: int) -> float:
        likeliest = [max(range(3), key=lambda v: p[v]) for p in at.p]
        c = [calibrated(at, j, v, alpha) for j, v in enumerate(likeliest)]
        scaled = (c[i] - min(c)) / (max(c) - min(c)) if max(c) > min(c) else 0.0
        return (1 - lambd) * scaled + lambd * (at.length - (at.places[i] - at.start)) / at.length

    return score


def discounted(gamma):
    return lambda at, i, v: at.p[i][v] * (gamma(at.step) if v == EOS else 1.0)


def time_left(steps: int, eps: float):
    """1 - s / t, and everything in the last step."""

    def share(at: Moment) -> float:
        t, s = (1 - (1 - eps) * k / steps for k in (at.turn, at.turn + 1))
        return 1.0 if at.turn == steps - 1 else 1 - s / t

    return share


def time_floor(steps: int, eps: float):
    return lambda at: math.floor(len(at.places) * time_left(steps, eps)(at))


def cosine(steps: int):
    def count(at: Moment) -> int:
        left = [math.floor(at.length * math.cos(math.pi / 2 * k / steps)) for k in range(steps)]
        return [a - b for a, b in zip(left, [*left[1:], 0], strict=True)][at.turn]

    return count


def at_least(threshold: float, count):
    return lambda at, scores: max(sum(score >= threshold for score in scores), count(at))


def entropy_budget(score, gamma: float):
    """The longest head of the order whose entropies, but for the largest, add up to at most `gamma`."""

    def count(at: Moment) -> int:
        order = sorted(range(len(at.places)), key=lambda i: (-score(at, i), i))
        h = [-negative_entropy(at, i) for i in order]
        return max(n for n in range(1, len(h) + 1) if n == 1 or sum(h[:n]) - max(h[:n]) <= gamma)

    return count


DREAM = {"sampler": "dream", "steps": 3, "eps": 0.1, "top_p": 0.8}
QUOTA = time_floor(3, 0.1)

CASES = {
    "margin": Case({"sampler": "margin"}, by_blind(margin, even(4)), [4]),
    "margin, two at a time": Case({"sampler": "margin", "steps": 2}, by_blind(margin, even(2)), [4]),
    "entropy": Case({"sampler": "entropy", "steps": 3}, by_blind(negative_entropy, even(3)), [4]),
    "entropy in blocks": Case({"sampler": "entropy", "block_length": 2}, by_blind(negative_entropy, even(2)), [2, 2]),
    "eb": Case({"sampler": "eb", "gamma": 0.9}, by_blind(negative_entropy, entropy_budget(negative_entropy, 0.9)), [4]),
    "eb in blocks": Case(
        {"sampler": "eb", "gamma": 0.9, "block_length": 2},
        by_blind(negative_entropy, entropy_budget(negative_entropy, 0.9)),
        [2, 2],
    ),
    "eb by probability": Case(
        {"sampler": "eb", "gamma": 0.6, "order": "max"},
        by_blind(lambda at, i: max(at.p[i]), entropy_budget(lambda at, i: max(at.p[i]), 0.6)),
        [4],
    ),
    "eb by margin": Case(
        {"sampler": "eb", "gamma": 0.6, "order": "margin"}, by_blind(margin, entropy_budget(margin, 0.6)), [4]
    ),
    "eoser": Case(
        {"sampler": "eoser", "eos_min_gamma": 0.2},
        by_drawn(discounted(lambda step: 0.2 + 0.8 * step / 3), whatever(even(4))),
        [4],
    ),
    "eoser in blocks": Case(
        {"sampler": "eoser", "eos_min_gamma": 0.2, "eos_max_gamma": 1.5, "block_length": 2},
        by_drawn(discounted(lambda step: 0.2 + 1.3 * step / 3), whatever(even(2))),
        [2, 2],
    ),
    "eoser in one step": Case(
        {"sampler": "eoser", "steps": 1}, by_drawn(discounted(lambda step: 1.0), whatever(even(1))), [3]
    ),
    "ass": Case({"sampler": "ass"}, by_drawn(lambda at, i, v: at.p[i][v], whatever(ascending(2))), [4]),
    "ass in blocks": Case(
        {"sampler": "ass", "block_num": 2}, by_drawn(lambda at, i, v: at.p[i][v], whatever(ascending(2))), [1, 3]
    ),
    "eoser_ass": Case(
        {"sampler": "eoser_ass", "eos_min_gamma": 0.05},
        by_drawn(discounted(lambda step: 0.05 + 0.95 * (2 ** (step + 1) - 1) / 4), whatever(ascending(2))),
        [4],
    ),
    "pc": Case({"sampler": "pc"}, by_drawn(position_aware(0.25, 10.0), whatever(even(4))), [4]),
    "pc with many at the ceiling": Case(
        {"sampler": "pc", "lambd": 0.0, "alpha": 0.3, "steps": 2},
        by_drawn(position_aware(0.0, 0.3), whatever(even(2))),
        [4],
    ),
    "pc in blocks": Case(
        {"sampler": "pc", "lambd": 1.0, "block_length": 2},
        by_drawn(position_aware(1.0, 10.0), whatever(even(2))),
        [2, 2],
    ),
    "pc_linear": Case({"sampler": "pc_linear", "lambd": 0.3}, by_blind(linear_position(0.3, 10.0), even(4)), [4]),
    "pc_linear in blocks": Case(
        {"sampler": "pc_linear", "lambd": 0.5, "alpha": 0.4, "block_length": 2},
        by_blind(linear_position(0.5, 0.4), even(2)),
        [2, 2],
    ),
    "dream origin": Case({**DREAM, "alg": "origin"}, by_coin(time_left(3, 0.1)), [3]),
    "dream maskgit_plus": Case(
        {**DREAM, "alg": "maskgit_plus"}, by_drawn(lambda at, i, v: at.q[i][v], whatever(QUOTA)), [4]
    ),
    "dream topk_margin": Case({**DREAM, "alg": "topk_margin"}, by_blind(lambda at, i: margin(at, i, "q"), QUOTA), [4]),
    "dream entropy": Case(
        {**DREAM, "alg": "entropy"}, by_blind(lambda at, i: negative_entropy(at, i, "q"), QUOTA), [4]
    ),
    "dream topk_margin, alg_temp": Case(
        {**DREAM, "alg": "topk_margin", "alg_temp": 0.3},
        by_softmax(lambda at, i: margin(at, i, "q"), QUOTA, lambda at: 0.3),
        [4],
    ),
    "dream entropy, alg_temp": Case(
        {**DREAM, "alg": "entropy", "alg_temp": 0.3},
        by_softmax(lambda at, i: negative_entropy(at, i, "q"), QUOTA, lambda at: 0.3),
        [4],
    ),
    "maskgit": Case(
        {"sampler": "maskgit", "steps": 3},
        by_softmax(lambda at, i: math.log(max(at.p[i])), cosine(3), lambda at: 4.5 * (1 - (at.turn + 1) / 3)),
        [4],
    ),
    "first_hitting": Case(
        {"sampler": "first_hitting"}, by_softmax(lambda at, i: 0.0, lambda at: 1, lambda at: 1.0), [4]
    ),
    "ancestral": Case({"sampler": "ancestral", "steps": 3}, by_coin(lambda at: 1 / (3 - at.turn)), [3]),
    "sdar": Case(
        {"sampler": "sdar", "steps": 2, "threshold": 0.6},
        by_drawn(lambda at, i, v: at.q[i][v], at_least(0.6, even(2))),
        [4],
    ),
    "sdar in blocks": Case(
        {"sampler": "sdar", "block_length": 2, "threshold": 0.4},
        by_drawn(lambda at, i, v: at.q[i][v], at_least(0.4, even(2))),
        [2, 2],
    ),
}
DRAWN = {"eoser", "ass", "eoser_ass", "pc", "sdar"}
"""Presets whose order reads the tokens drawn."""


def settings_of(settings: dict[str, Any]) -> dict[str, Any]:
    return {**NEEDS.get(settings["sampler"], {}), **settings}


@pytest.mark.parametrize("name", CASES)
def test_behaviour_logp_is_the_probability_of_the_rollout(name):
    case = CASES[name]
    model = Table(longest=5, eos_ids=(EOS,))
    law = rollouts(model, [1], case.blocks, case.rule, case.temperature, case.settings.get("top_p", 1.0))
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    settings = settings_of(case.settings)
    out = generate(model, [[1]] * 50, gen_length=sum(case.blocks), temperature=case.temperature, seed=3, **settings)
    expected = torch.tensor([law[steps] for steps in ordered_steps_of(out)], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, expected, rtol=0, atol=1e-9)
    reads_draws = settings["sampler"] in DRAWN or settings.get("alg") == "maskgit_plus"
    assert out.exactness == ("exact_with_F" if reads_draws else "exact")


DRAWS_OR_TEMPERS = ("maskgit", "first_hitting", "ancestral", "dream", "sdar")
"""Presets that choose at random, or read a distribution that temperature 0 does not have."""


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].settings["sampler"] not in DRAWS_OR_TEMPERS])
def test_greedy_rollouts_follow_the_same_order(name):
    """What a rule takes at temperature 0, where every draw is the likeliest token: blind and drawn orders agree."""
    case = CASES[name]
    model = Table(seed=5, longest=5, eos_ids=(EOS,))
    cold = rollouts(model, [1], case.blocks, case.rule, temperature=1e-3)
    (expected,) = [steps for steps, chance in cold.items() if chance > 0.999]
    out = generate(model, [[1]], gen_length=sum(case.blocks), **settings_of(case.settings))
    assert ordered_steps_of(out) == [expected]
    assert out.exactness == "none"


ONE_AT_A_TIME = {
    "margin": CASES["margin"].rule,
    "entropy": by_blind(negative_entropy, even(3)),
    "maskgit": by_softmax(lambda at, i: math.log(max(at.p[i])), even(3), lambda at: 4.5 * (1 - (at.turn + 1) / 3)),
    "first_hitting": CASES["first_hitting"].rule,
    "pc_linear": by_blind(linear_position(0.25, 10.0), even(3)),
    "pc": by_drawn(position_aware(0.25, 10.0), whatever(even(3))),
    "eoser": by_drawn(discounted(lambda step: 0.4 + 0.6 * step / 2), whatever(even(3))),
    "sdar": by_drawn(lambda at, i, v: at.q[i][v], at_least(1.1, even(3))),
}


@pytest.mark.parametrize("sampler", ONE_AT_A_TIME)
def test_one_token_at_a_time_an_order_blind_to_the_draw_leaves_the_joint_as_it_is(sampler):
    model = Exact()
    model.spec = DiffusionSpec(mask_id=3, eos_ids=(EOS,), forbidden_ids=(3,))
    law = texts(rollouts(model, [], [3], ONE_AT_A_TIME[sampler]))
    distance = total_variation(law, model.joint)
    assert distance > 0.05 if sampler in DRAWN else distance < 1e-12
    options = {"maskgit": {"mode": "linear"}, "sdar": {"threshold": 1.0}}.get(sampler, {})
    rows = 4000
    settings = settings_of({"sampler": sampler, **options})
    out = generate(model, [[]] * rows, gen_length=3, temperature=1.0, **settings)
    seen = Counter(map(tuple, out.completions))
    measured = total_variation({text: count / rows for text, count in seen.items()}, law)
    assert measured < 0.04


RAGGED = [[1, 0], [2], [], [0, 0], [1]]
IDS = [7, 3, 5, 9, 1]
ONE_OF_EACH = {case.settings["sampler"] + case.settings.get("alg", ""): name for name, case in CASES.items()}


@pytest.mark.parametrize("name", ONE_OF_EACH.values())
def test_a_row_does_not_depend_on_the_others(name):
    model = Table(longest=6, eos_ids=(EOS,))
    settings = {"gen_length": sum(CASES[name].blocks), "temperature": 1.0, **settings_of(CASES[name].settings)}
    together = generate(model, RAGGED, sample_ids=IDS, **settings)
    for row in (1, 3):
        alone = generate(model, [RAGGED[row]], sample_ids=[IDS[row]], **settings)
        assert ordered_steps_of(alone) == [ordered_steps_of(together)[row]]
    order = [3, 0, 4, 1, 2]
    shuffled = generate(model, [RAGGED[i] for i in order], sample_ids=[IDS[i] for i in order], **settings)
    assert ordered_steps_of(shuffled) == ordered_steps_of(together.select(order))
    torch.testing.assert_close(shuffled.behaviour_logp, together.select(order).behaviour_logp, rtol=0, atol=1e-12)


def test_a_random_choice_among_drawn_confidences_has_no_likelihood():
    model = Table(longest=5)
    out = generate(model, [[1]] * 3, gen_length=4, temperature=1.0, sampler="dream", alg="maskgit_plus", alg_temp=0.4)
    assert out.exactness == "none" and out.behaviour_logp.isnan().all()
    # It is the probability itself that is divided: at most 1, whatever was drawn.
    assert ((out.events.conf > 0) & (out.events.conf <= 1)).all()


def test_without_a_budget_the_positions_without_entropy_are_written_and_one_more():
    model = Table(longest=5)
    for n, table in model.tables.items():
        certain = torch.zeros(n, dtype=torch.bool)
        certain[[i for i in (2, 4) if i < n]] = True  # completion positions 1 and 3
        point_mass = torch.full_like(table, -math.inf).index_fill(-1, torch.tensor([1]), 0.0)
        model.tables[n] = torch.where(certain[:, None], point_mass, table)
    for order in ("entropy", "max", "margin"):
        out = generate(model, [[1]] * 9, gen_length=4, temperature=1.0, sampler="eb", gamma=0.0, order=order)
        assert (out.reveal_step[:, [1, 3]] == 1).all()
        assert out.reveal_step[:, [0, 2]].sort(dim=1).values.tolist() == [[1, 2]] * 9
    one_each = generate(Table(longest=5), [[1]] * 9, gen_length=4, temperature=1.0, sampler="eb", gamma=0.0)
    assert one_each.reveal_step.sort(dim=1).values.tolist() == [[1, 2, 3, 4]] * 9
    at_once = generate(Table(longest=5), [[1]] * 9, gen_length=4, temperature=1.0, sampler="eb", gamma=99.0)
    assert at_once.nfe == [1] * 9


def test_dream_reads_the_distribution_of_temperature_1_when_it_draws_greedily():
    model = Table(longest=5)
    warm = by_drawn(lambda at, i, v: at.q[i][v], whatever(QUOTA))
    out = generate(model, [[1]], gen_length=4, **{**DREAM, "alg": "maskgit_plus"})
    position, token, _ = max(
        (
            (at.places[i], v, at.q[i][v])
            for at in moments(model, [1], [4], warm, 1.0, 0.8)
            for i in range(4)
            for v in range(3)
        ),
        key=lambda choice: choice[2],
    )
    first = ordered_steps_of(out)[0][0]
    assert first == ((position, token),)


def moments(model, prompt, blocks, rule, temperature, top_p) -> list[Moment]:
    """The first moment of a rollout."""
    seen: list[Moment] = []

    def spy(at: Moment):
        seen.append(at)
        return rule(at)

    rollouts(model, prompt, blocks, spy, temperature, top_p)
    return seen[:1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "pc"}, "background is not set"),
        ({"sampler": "pc", **NEEDS["pc"], "lambd": -1.0}, "lambd is -1.0"),
        ({"sampler": "pc", **NEEDS["pc"], "alpha": 0.0}, "alpha is 0.0"),
        ({"sampler": "pc_linear", **NEEDS["pc"], "lambd": 1.5}, "lambd is 1.5; expected a number from 0 to 1"),
        ({"sampler": "pc_linear", **NEEDS["pc"], "alpha": -1.0}, "alpha is -1.0"),
        ({"sampler": "eoser", "eos_min_gamma": 0.9, "eos_max_gamma": 0.5}, "factors rise from 0.9 to 0.5"),
        ({"sampler": "eoser", "eos_min_gamma": -0.1}, "factors rise from -0.1"),
        ({"sampler": "eoser_ass", "eos_max_gamma": math.inf}, "to inf"),
        ({"sampler": "ass", "block_length": 2}, "set block_num instead"),
        ({"sampler": "ass", "block_num": 3}, "block_num is 3; expected at least 1, at most one per step: 2"),
        ({"sampler": "ass", "block_num": 0}, "block_num is 0"),
        ({"sampler": "ass", "steps": 3}, "fill 7 in 3 steps, and gen_length is 4; expected between 1 and 2 steps"),
        ({"sampler": "ass", "steps": 0}, "expected between 1 and 2 steps"),
        ({"sampler": "dream", "alg": "entropies"}, "alg is 'entropies'; expected one of origin, maskgit_plus"),
        ({"sampler": "dream", "alg_temp": -0.1}, "alg_temp is -0.1"),
        ({"sampler": "dream", "alg": "origin", "alg_temp": 0.1}, "has no confidence to divide"),
        ({"sampler": "dream", "eps": 0.0}, "eps is 0.0; expected a time between 0 and 1"),
        ({"sampler": "maskgit", "mode": "sine"}, "mode is 'sine'; expected 'linear'"),
        ({"sampler": "maskgit", "mode": "pow-2"}, "mode is 'pow-2'"),
        ({"sampler": "maskgit", "mode": "2"}, "mode is '2'"),
        ({"sampler": "maskgit", "choice_temperature": -1.0}, "choice_temperature is -1.0"),
        ({"sampler": "first_hitting", "steps": 4}, "decides by itself how many"),
        ({"sampler": "sdar", "threshold": 0.0}, "threshold is 0.0"),
        ({"sampler": "eb", "gamma": -0.1}, "gamma is -0.1; expected a finite number of nats, at least 0"),
        ({"sampler": "eb", "gamma": math.inf}, "gamma is inf"),
        ({"sampler": "eb", "order": "drawn"}, "order is 'drawn'; expected 'entropy', 'max' or 'margin'"),
        ({"sampler": "eb", "steps": 2}, "decides by itself how many"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(RecipeError, match=message):
        generate(Table(longest=5, eos_ids=(EOS,)), [[1]], **{"gen_length": 4, "temperature": 1.0, **arguments})


def test_holding_ends_back_needs_ends():
    for sampler in ("eoser", "eoser_ass"):
        with pytest.raises(RecipeError, match="ends are to be held back and the model has none"):
            generate(Table(longest=5), [[1]], gen_length=4, sampler=sampler)


def test_ascending_steps_need_a_model_without_blocks_of_its_own():
    model = Table(longest=5)
    model.spec = DiffusionSpec(mask_id=3, block_size=2, forbidden_ids=(3,))
    with pytest.raises(RecipeError, match="a block-causal model writes its own blocks"):
        generate(model, [[1]], gen_length=4, sampler="ass")


@pytest.mark.parametrize("block_length", [2, 4])
def test_ends_are_held_back_by_the_steps_of_all_blocks(block_length):
    model = Table(longest=5, eos_ids=(EOS,))
    settings = {"sampler": "eoser", "eos_min_gamma": 0.2, "eos_max_gamma": 1.4, "block_length": block_length}
    events = generate(model, [[1]] * 40, gen_length=4, temperature=1.0, **settings).events
    gamma = torch.where(events.token == EOS, 0.2 + 1.2 * (events.step - 1).double() / 3, 1.0)
    torch.testing.assert_close(events.conf, events.logp + gamma.log())
    assert {2, 3, 4} <= set(events.step[events.token == EOS].tolist())


def test_an_end_of_turn_can_be_held_back_as_well():
    """Nothing but ends of sequence and of turn is likely, and both are held back: what is left comes first."""
    model = Table(words=4, longest=5, eos_ids=(2,))
    for table in model.tables.values():
        table[..., 2] += 4.0
        table[..., 0] += 4.0
    settings = {"gen_length": 4, "sampler": "eoser", "eos_min_gamma": 0.0, "eos_max_gamma": 0.0, "temperature": 1.0}
    for eot_id, held in [(None, {2}), (0, {0, 2})]:
        out = generate(model, [[1]] * 200, eot_id=eot_id, **settings)
        confidence, token = out.events.conf, out.events.token
        is_held = torch.isin(token, torch.tensor(sorted(held)))
        assert (confidence[is_held] == -math.inf).all() and (confidence[~is_held] > -math.inf).all()
        assert 0 < int(is_held.sum()) < len(token)
