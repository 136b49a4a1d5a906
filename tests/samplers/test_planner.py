"""Rollouts that follow a planner against their enumeration from plain Python, and replayed from their log."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import product

import pytest
import torch

from dllm_rl.diffusion.ledger import forced_coins_logp
from dllm_rl.diffusion.likelihood import score_views
from dllm_rl.diffusion.replay import replay
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.generate import generate
from tests.samplers.oracle import Steps, steps_of
from tests.samplers.order_oracle import drawn_from
from tests.samplers.remask_oracle import Planning

GIVEN = [None, 2, None, None]


def planned(
    model: Planning, prompt: list[int], blocks: list[list[int]], temperature: float, planner_temperature: float
) -> dict[Steps, float]:
    """Every rollout and its probability: coins, the likeliest position where none falls heads, then tokens."""
    words = model.spec.mask_id
    length = sum(map(len, blocks))

    def follow(tokens: tuple[int, ...]) -> dict[Steps, float]:
        open_now = next(([i for i in block if tokens[i] == words] for block in blocks if _has(block, tokens)), [])
        if not open_now:
            return {(): 1.0}
        seen = torch.tensor([[*prompt, *tokens]])
        logits, plan = (said[0, len(prompt) :].tolist() for said in (model.logits(seen), model.plan(seen)))
        chance = {i: 1 / (1 + math.exp(-plan[i] / planner_temperature)) for i in open_now}
        likeliest = min(open_now, key=lambda i: (-plan[i], i))
        law: dict[Steps, float] = defaultdict(float)
        for coins in product((False, True), repeat=len(open_now)):
            fell = dict(zip(open_now, coins, strict=True))
            chosen = [i for i in open_now if fell[i]] or [likeliest]
            weight = math.prod(chance[i] if fell[i] else 1 - chance[i] for i in open_now)
            q = [drawn_from(logits[i], words, temperature, 1.0) for i in chosen]
            for drawn in product(range(words), repeat=len(chosen)):
                written = dict(zip(chosen, drawn, strict=True))
                after = tuple(written.get(i, token) for i, token in enumerate(tokens))
                tokens_chance = math.prod(law_i[v] for law_i, v in zip(q, drawn, strict=True))
                for rest, chance_of_rest in follow(after).items():
                    law[(frozenset(written.items()), *rest)] += weight * tokens_chance * chance_of_rest
        return law

    def _has(block: list[int], tokens: tuple[int, ...]) -> bool:
        return any(tokens[i] == words for i in block)

    return follow((words,) * length)


@pytest.mark.parametrize("planner_temperature", [1.0, 0.5])
@pytest.mark.parametrize("blocks", [[[0, 1, 2]], [[0, 1], [2, 3]]], ids=["one", "two"])
def test_behaviour_logp_is_the_probability_of_the_rollout(blocks: list[list[int]], planner_temperature: float) -> None:
    length, longest = sum(map(len, blocks)), 5
    model = Planning(longest=longest)
    law = planned(model, [1], blocks, 0.7, planner_temperature)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    way = {"gen_length": length, "block_length": len(blocks[0]), "temperature": 0.7}
    out = generate(model, [[1]] * 300, sampler="planner", planner_temperature=planner_temperature, **way)
    seen = [tuple(step for step in rollout if step) for rollout in steps_of(out)]
    expected = torch.tensor([law[steps] for steps in seen], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, expected, rtol=0, atol=1e-10)
    assert out.exactness == "exact"
    assert out.planner_temperature == planner_temperature


def test_rollouts_come_as_often_as_the_enumeration_says() -> None:
    model = Planning(longest=3)
    law = planned(model, [1], [[0, 1]], 0.7, 0.5)
    out = generate(
        model, [[1]] * 20_000, sampler="planner", gen_length=2, temperature=0.7, planner_temperature=0.5, seed=2
    )
    counts = Counter(tuple(step for step in rollout if step) for rollout in steps_of(out))
    assert set(counts) <= set(law)
    squared = sum((counts[steps] - 20_000 * chance) ** 2 / (20_000 * chance) for steps, chance in law.items())
    degrees = len(law) - 1
    assert squared < degrees + 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("planner_temperature", [1.0, 0.5])
@pytest.mark.parametrize("fixed", [None, [GIVEN, [None] * 4]], ids=["free", "given"])
def test_what_was_open_and_chosen_gives_the_recorded_likelihood_of_each_step(
    temperature: float, planner_temperature: float, fixed: list[list[int | None]] | None
) -> None:
    """A coin for every position that was hidden in the block being written; the tokens under what they were drawn from.

    Published code scores tokens at temperature 1 whatever the rollout's.
    """
    model = Planning(longest=6)
    way = {"gen_length": 4, "block_length": 2, "temperature": temperature, "fixed": fixed}
    out = generate(model, [[1, 2], [0]], sampler="planner", planner_temperature=planner_temperature, **way)
    sequences = out.sequences()
    found = replay(out, sequences)
    views = found.views
    assert found.open is not None
    plan = model.plan(views.canvas, sequences.attend[views.row])
    logp = forced_coins_logp(plan / planner_temperature, views.scored, found.open)
    torch.testing.assert_close(logp, found.selection_logp, rtol=0, atol=1e-10)
    scores = score_views(model, sequences, views, views_per_forward=3, transform=out.transform)
    torch.testing.assert_close(scores.logp, found.behaviour_logp, rtol=0, atol=1e-10)
    total = torch.zeros(2, dtype=torch.float64).index_add(0, views.row, logp + scores.logp.sum(1))
    torch.testing.assert_close(total, out.behaviour_logp, rtol=0, atol=1e-10)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_without_chance_the_likeliest_are_written_as_many_as_coins_would_on_average(
    temperature: float, seed: int
) -> None:
    model = Planning(longest=6, seed=seed)
    prompts = [[0], [1], [2]]
    way = {"gen_length": 5, "temperature": 0.0, "planner_temperature": temperature}
    out = generate(model, prompts, sampler="planner", mode="expected", **way)
    assert out.planner_temperature is None
    counts = set()
    for row, nfe in enumerate(out.nfe):
        for step in range(nfe):
            canvas = out.canvas(step)[row]
            hidden = [i for i, token in enumerate(canvas.tolist()) if token == model.spec.mask_id]
            plan = model.plan(canvas[None])[0].tolist()
            expected = sum(1 / (1 + math.exp(-plan[i] / temperature)) for i in hidden)
            chosen = sorted(hidden, key=lambda i, plan=plan: (-plan[i], i))[: max(1, int(expected))]
            assert (out.canvas(step + 1)[row] != canvas).nonzero()[:, 0].tolist() == sorted(chosen)
            counts.add(len(chosen))
    assert len(counts) > 1


def test_a_choice_without_chance_is_certain() -> None:
    """Its likelihood is that of the tokens."""
    out = generate(Planning(longest=4), [[1]], sampler="planner", mode="expected", gen_length=3, temperature=0.7)
    assert out.exactness == "exact"
    assert torch.equal(out.selection_logp, torch.zeros_like(out.selection_logp))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"planner_temperature": 0.0}, "planner_temperature is 0.0; expected a finite number above 0"),
        ({"planner_temperature": math.inf}, "planner_temperature is inf; expected a finite number above 0"),
        ({"mode": "greedy"}, "mode is 'greedy'; expected 'sample' or 'expected'"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(option: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        generate(Planning(), [[1]], sampler="planner", gen_length=3, **option)
