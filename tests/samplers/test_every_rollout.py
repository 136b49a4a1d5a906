"""Rules that look at scores: the probability of every rollout, by enumerating all draws, against the recorded one.

The rule itself is taken as it is; what is tested is that the bars it sets are the exact condition for being left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch

from dllm_rl import rng
from dllm_rl.diffusion.ledger import forced_coins_logp
from dllm_rl.samplers.canvas import Canvas, blank_canvas
from dllm_rl.samplers.generate import generate
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.network import Exact, propose
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.score import DrawnScore
from dllm_rl.samplers.select import Choice
from tests.samplers.oracle import Steps, Table, steps_of

PRESETS = [
    {"sampler": "llada", "steps": 2},
    {"sampler": "threshold", "threshold": 0.45},
    {"sampler": "threshold", "threshold": 0.4, "max_k": 2},
    {"sampler": "sdar", "threshold": 0.45, "steps": 2},
    {"sampler": "factor", "factor": 1.2},
    *({"sampler": "eb", "gamma": 0.6, "order": order} for order in ("entropy", "max", "margin")),
    {"sampler": "localleap"},
    {"sampler": "klass"},
    {"sampler": "dus"},
    {"sampler": "threshold", "threshold": 0.45, "order": "max"},
]


def tables(kind: str) -> Table:
    model = Table(seed=4, longest=4)
    for n, table in model.tables.items():
        model.tables[n] = torch.zeros_like(table) if kind == "tied" else table
    return model


def outcomes(sampler: Sampler, canvas: Canvas, proposal: Proposal) -> Iterator[tuple[Choice, tuple[int, ...], float]]:
    """Every way to draw, with what the rule makes of it: the choice, a token per open position, the probability."""
    q = sampler.transform.log_probs(proposal.logits).exp().tolist()
    likely = [[token for token, chance in enumerate(row) if chance > 0] for row in q]
    for tokens in product(*likely):
        if isinstance(sampler.score, DrawnScore):
            table = sampler.score.of_tokens(proposal, canvas)
            scores = table.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        else:
            scores = sampler.score.of_positions(proposal, canvas)
        choice = sampler.select(proposal.dense(scores, canvas.hidden.shape), canvas.eligible, proposal, canvas)
        chance = 1.0
        for row, token in zip(q, tokens, strict=True):
            chance *= row[token]
        yield choice, tokens, chance


def law(sampler: Sampler, model: Table, prompt: list[int], length: int) -> dict[Steps, float]:
    """The probability of every rollout."""
    found: dict[Steps, float] = defaultdict(float)
    start = blank_canvas(model, [prompt], sampler.blocks.layout([prompt]), rng.sample_keys(0, torch.tensor([0])))
    nobody = torch.zeros_like(start.finished)

    def follow(canvas: Canvas, past: Steps, chance: float) -> None:
        if bool(canvas.finished):
            found[past] += chance
            return
        proposal = propose(Exact(model), canvas, canvas.eligible, with_plan=False)
        places = proposal.index.tolist()
        ways: dict[frozenset[tuple[int, int]], float] = defaultdict(float)
        memory = {}
        for choice, tokens, weight in outcomes(sampler, canvas, proposal):
            drawn = dict(zip(places, tokens, strict=True))
            chosen = choice.commit[0].nonzero()[:, 0].tolist()
            ways[frozenset((place, drawn[place]) for place in chosen)] += weight
            memory = choice.memory
        for written, weight in ways.items():
            index, token = (torch.tensor([pair[i] for pair in sorted(written)]).long() for i in (0, 1))
            blank = torch.zeros(len(index), dtype=torch.float64)
            after = canvas.write(torch.zeros_like(index), index, token, blank, blank)
            after = replace(after, forwards=after.forwards + 1, turn=after.turn + 1, memory={**after.memory, **memory})
            follow(after.open_next_block(stay=nobody), (*past, written), chance * weight)

    follow(start.open_next_block(stay=nobody), (), 1.0)
    return found


@pytest.mark.parametrize("kind", ["random", "tied"])
@pytest.mark.parametrize("way", PRESETS, ids=str)
def test_behaviour_logp_is_the_probability_of_the_rollout(way, kind):
    model, options = tables(kind), dict(way)
    name, steps = options.pop("sampler"), options.pop("steps", None)
    request = Request(gen_length=3, steps=steps, temperature=0.8)
    sampler = make_sampler(model.spec, name, options, request)
    expected = law(sampler, model, [1], 3)
    assert sum(expected.values()) == pytest.approx(1.0, abs=1e-12)
    out = generate(model, [[1]] * 40, gen_length=3, temperature=0.8, **way)
    assert out.exactness == ("exact_with_F" if isinstance(sampler.score, DrawnScore) else "exact")
    seen = [tuple(step for step in rollout if step) for rollout in steps_of(out)]  # rows may finish before others
    assert set(seen) <= expected.keys()
    logp = torch.tensor([expected[rollout] for rollout in seen], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, logp, rtol=0, atol=1e-10)


def test_a_planners_coins_with_a_forced_choice_sum_to_one():
    logits = torch.tensor([[0.3, -1.0, 0.3, -2.0]], dtype=torch.float64)
    eligible = torch.tensor([[True, True, True, False]])
    fired: dict[tuple[bool, ...], float] = defaultdict(float)
    for coins in product([False, True], repeat=3):
        chance = 1.0
        for coin, p in zip(coins, logits[0, :3].sigmoid().tolist(), strict=True):
            chance *= p if coin else 1 - p
        fired[coins if any(coins) else (True, False, False)] += chance  # of equals the first is forced
    assert sum(fired.values()) == pytest.approx(1.0)
    for coins, chance in fired.items():
        logp = forced_coins_logp(logits, torch.tensor([[*coins, False]]), eligible)
        assert float(logp.exp()) == pytest.approx(chance, abs=1e-14)
