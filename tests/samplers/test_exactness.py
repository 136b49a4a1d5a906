"""The recorded likelihood of a rollout against the enumeration of all rollouts, and the laws of the samplers."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from dllm_rl.samplers.generate import generate
from tests.samplers.oracle import Exact, Table, enumerate_rollouts, law_of_texts, steps_of, total_variation

SAMPLERS = {
    "low_confidence": {"sampler": "llada"},
    "random": {"sampler": "llada", "remasking": "random"},
    "max_probability": {"sampler": "rl"},
}


def tied_table() -> Table:
    """All positions and tokens look alike, so that every order rests on how ties are broken."""
    model = Table(longest=5)
    model.tables = {n: torch.zeros_like(table) for n, table in model.tables.items()}
    return model


@pytest.mark.parametrize("order", SAMPLERS)
@pytest.mark.parametrize("quotas", [[1, 1, 1, 1], [2, 2], [2, 1, 1], [4]])
@pytest.mark.parametrize("make", [lambda: Table(longest=5), tied_table], ids=["random", "tied"])
def test_behaviour_logp_is_the_probability_of_the_rollout(make, quotas, order):
    model = make()
    law = enumerate_rollouts(model, [1], 4, quotas, order, temperature=0.7)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    out = generate(model, [[1]] * 60, gen_length=4, steps=len(quotas), temperature=0.7, seed=3, **SAMPLERS[order])
    expected = torch.tensor([law[steps] for steps in steps_of(out)], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, expected, rtol=0, atol=1e-10)
    assert out.exactness == ("exact_with_F" if order == "low_confidence" else "exact")


def test_without_the_f_term_the_probabilities_sum_to_more_than_one():
    """Why the term is recorded: the tokens' log-probabilities alone are not those of a rollout."""
    model = Table(longest=5)
    out = generate(model, [[1]] * 4000, gen_length=4, temperature=1.0)
    law = enumerate_rollouts(model, [1], 4, [1] * 4, "low_confidence")
    seen = {steps: i for i, steps in enumerate(steps_of(out))}
    tokens_alone = out.token_behaviour_logp.sum(dim=1).exp()
    covered = sum(law[steps] for steps in seen)
    assert sum(float(tokens_alone[i]) for i in seen.values()) > 1.5 > covered


@pytest.mark.parametrize("order", SAMPLERS)
def test_rollouts_come_as_often_as_the_enumeration_says(order):
    model = Table(longest=4)
    law = enumerate_rollouts(model, [2], 3, [1, 1, 1], order)
    out = generate(model, [[2]] * 20_000, gen_length=3, temperature=1.0, **SAMPLERS[order])
    counts = Counter(steps_of(out))
    assert set(counts) <= set(law)
    squared = sum((counts[steps] - 20_000 * chance) ** 2 / (20_000 * chance) for steps, chance in law.items())
    degrees = len(law) - 1
    assert squared < degrees + 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize(
    ("order", "unbiased"), [("max_probability", True), ("random", True), ("low_confidence", False)]
)
def test_one_token_at_a_time_an_order_blind_to_the_draw_leaves_the_joint_as_it_is(order, unbiased):
    model = Exact()
    law = law_of_texts(enumerate_rollouts(model, [], 3, [1, 1, 1], order))
    distance = total_variation(law, model.joint)
    assert distance < 1e-12 if unbiased else distance > 0.1
    out = generate(model, [[]] * 20_000, gen_length=3, temperature=1.0, **SAMPLERS[order])
    seen = Counter(map(tuple, out.completions))
    measured = total_variation({text: count / 20_000 for text, count in seen.items()}, model.joint)
    assert measured == pytest.approx(distance, abs=0.015)


def test_a_greedy_rollout_has_no_likelihood():
    for sampler in ("llada", "rl"):
        out = generate(Table(longest=4), [[1]], gen_length=3, sampler=sampler)
        assert out.exactness == "none"
        assert out.behaviour_logp.isnan().all()
        assert out.token_behaviour_logp[:, 1:].isnan().all()
