"""Rounds of exchange: every rollout and its probability by plain rules, and the limits."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import product
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
from tests.samplers.oracle import Table
from tests.samplers.remdm_oracle import Log, logs_of, reader

TEMPERATURE = 0.8


class Rounds(NamedTuple):
    ratio: float
    k: int
    exchanged: int
    loops: int
    current: bool = False
    drawn: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "sampler": "remdm_llada",
            "init_unmask_ratio": self.ratio,
            "unmask_k": self.k,
            "remask_k": self.exchanged,
            "loop_steps": self.loops,
            "confidence": "current" if self.current else "stored",
            "order": "drawn" if self.drawn else "max",
        }

    def forwards(self, length: int) -> list[tuple[str, int]]:
        """Kind and count of each forward: ("write", n), or ("judge", n) which hides."""
        draft = math.floor(self.ratio * length)
        made = [("write", min(self.k, draft - done)) for done in range(0, draft, self.k)]
        n = min(self.exchanged, draft)
        if n:
            one = [("judge", n), ("write", n)] if self.current else [("hide and write", n)]
            made += one * self.loops
        left = length - draft
        return made + [("write", min(self.k, left - done)) for done in range(0, left, self.k)]


CASES = {
    "stored": Rounds(0.7, 1, 1, 2),
    "stored, several at a time": Rounds(0.75, 2, 1, 2),
    "stored, exchanging more than it drafts by": Rounds(0.75, 1, 2, 1),
    "stored, the whole block": Rounds(1.0, 2, 1, 2),
    "stored, all of the draft": Rounds(0.5, 1, 3, 2),
    "current": Rounds(0.7, 1, 1, 2, current=True),
    "current, the whole block": Rounds(1.0, 2, 1, 2, current=True),
    "current, several": Rounds(0.75, 2, 2, 1, current=True),
    "stored, blind": Rounds(0.7, 1, 1, 2, drawn=False),
    "current, blind": Rounds(0.75, 1, 1, 1, current=True, drawn=False),
    "no draft": Rounds(0.2, 1, 1, 3),
}


def rollouts(model: Table, prompt: list[int], rounds: Rounds, start: list[int], temperature: float) -> dict[Log, float]:
    """Every rollout and its probability. A round's hiding by stored confidence is logged with the forward before it."""
    words = model.spec.mask_id
    free = [i for i, token in enumerate(start) if token == words]
    plan = rounds.forwards(len(free))
    read = reader(model, prompt, temperature)

    def lowest(p: dict[int, float], count: int) -> frozenset[int]:
        return frozenset(sorted(p, key=lambda i: (p[i], i))[:count])

    def follow(now: tuple[int, ...], psi: dict[int, float], k: int) -> dict[Log, float]:
        if k == len(plan):
            return {(): 1.0}
        kind, count = plan[k]
        p, q = read(now)
        ways: dict[tuple[frozenset, frozenset], float] = defaultdict(float)
        if kind == "judge":
            ways[frozenset(), lowest({i: p[i][now[i]] for i in psi}, count)] = 1.0
        else:
            places = [i for i in free if now[i] == words]
            for tokens in product(range(words), repeat=len(places)):
                drawn = dict(zip(places, tokens, strict=True))
                score = {
                    i: p[i][v] if rounds.drawn else max(p[i][:words]) / sum(p[i][:words]) for i, v in drawn.items()
                }
                best = sorted(places, key=lambda i: (-score[i], i))[:count]
                written = frozenset((i, drawn[i]) for i in best)
                kept = psi | {i: p[i][v] for i, v in written}
                follows = k + 1 < len(plan) and plan[k + 1][0] == "hide and write"
                hidden = lowest(kept, plan[k + 1][1]) if follows else frozenset()
                ways[written, hidden] += math.prod(q[i][v] for i, v in drawn.items())
        law: dict[Log, float] = defaultdict(float)
        for (written, hidden), chance in ways.items():
            if chance < 1e-12:  # none in a warm rollout, most in a cold one
                continue
            new = dict(written)
            after = tuple(words if i in hidden else new.get(i, token) for i, token in enumerate(now))
            kept = {i: c for i, c in (psi | {i: p[i][v] for i, v in written}).items() if i not in hidden}
            for rest, chance_of_rest in follow(after, kept, k + 1).items():
                law[((written, hidden), *rest)] += chance * chance_of_rest
        return law

    return follow(tuple(start), {}, 0)


def made(model: Table, prompts: list[list[int]], rounds: Rounds, length: int, temperature: float, **more: Any):
    return generate(model, prompts, gen_length=length, temperature=temperature, **rounds.settings, **more)


@pytest.mark.parametrize("name", CASES)
def test_behaviour_logp_is_the_probability_of_the_rollout(name):
    rounds, length = CASES[name], 3
    model = Table(seed=2, longest=4)
    law = rollouts(model, [1], rounds, [3] * length, TEMPERATURE)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    out = made(model, [[1]] * 40, rounds, length, TEMPERATURE)
    steps = len(rounds.forwards(length))
    assert out.nfe == [steps] * 40
    expected = torch.tensor([law[log] for log in logs_of(out, steps)], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, expected, rtol=0, atol=1e-10)
    assert out.exactness == ("exact_with_F" if rounds.drawn else "exact")


@pytest.mark.parametrize("name", CASES)
def test_greedy_rollouts_follow_the_same_rule(name):
    rounds = CASES[name]
    model = Table(seed=5, longest=5)
    cold = rollouts(model, [1], rounds, [3] * 4, 1e-3)
    (expected,) = [log for log, chance in cold.items() if chance > 0.999]
    assert logs_of(made(model, [[1]], rounds, 4, 0.0), len(expected)) == [expected]


@pytest.mark.parametrize("name", ["stored", "current", "current, the whole block"])
def test_each_row_has_rounds_by_what_it_has_to_write_and_what_is_given_stays(name):
    rounds, model = CASES[name], Table(seed=2, longest=6)
    given = [[None] * 4, [None, 2, None, None], [0, None, 1, None], [0, 1, None, 2], [1, 1, 1, 1]]
    together = made(model, [[1]] * 5, rounds, 4, TEMPERATURE, fixed=given, sample_ids=[7, 3, 5, 9, 1])
    for row, template in enumerate(given):
        free = template.count(None)
        assert together.nfe[row] == (len(rounds.forwards(free)) if free else 0)
        start = [3 if token is None else token for token in template]
        law = rollouts(model, [1], rounds, start, TEMPERATURE) if 0 < free < 4 else None
        mine = together.select([row])
        if law is not None:
            (log,) = logs_of(mine, together.nfe[row])
            assert float(mine.behaviour_logp) == pytest.approx(math.log(law[log]), abs=1e-10)
        alone = made(model, [[1]], rounds, 4, TEMPERATURE, fixed=[template], sample_ids=[[7, 3, 5, 9, 1][row]])
        assert logs_of(alone, together.num_steps) == logs_of(mine, together.num_steps)
    changed = together.events.op != Op.FIX
    assert all(
        given[row][place] is None
        for row, place in zip(
            together.events.row[changed].tolist(), together.events.position[changed].tolist(), strict=True
        )
    )


@pytest.mark.parametrize("name", ["stored", "current"])
def test_the_log_replays_every_canvas_that_the_model_saw_block_by_block(name):
    rounds = CASES[name]._replace(ratio=0.5)
    model = Table(longest=6)
    out = made(model, [[1, 0], [2], []], rounds, 4, TEMPERATURE, block_length=2)
    assert len(model.seen) == out.num_steps == 2 * len(rounds.forwards(2))
    for step, canvas in enumerate(model.seen):
        assert torch.equal(out.canvas(step), canvas)
    half = out.num_steps // 2
    assert (out.completion_canvas(half)[:, :2] == out.tokens[:, :2]).all()
    assert set(out.events.position[out.events.op == Op.REMASK].tolist()) == {0, 1, 2, 3}


def test_a_fork_goes_on_as_the_rollout_would_have():
    model, prompts, ids = Table(longest=6), [[1, 0], [2], []], [4, 8, 2]
    for name in ("stored", "current"):
        rounds = CASES[name]
        options = {option: value for option, value in rounds.settings.items() if option != "sampler"}
        sampler = make_sampler(model.spec, "remdm_llada", options, Request(gen_length=4, temperature=TEMPERATURE))
        whole = made(model, prompts, rounds, 4, TEMPERATURE, sample_ids=ids)
        state = begin(model, prompts, sampler, rng.sample_keys(0, torch.tensor(ids)))
        for _ in range(3):
            state = advance(state, sampler, 3)
        index = [2, 0, 0]
        forked = run(state.select(torch.tensor(index)), sampler, 3)
        out = trajectory(forked, [prompts[i] for i in index], model, sampler)
        assert logs_of(out, out.num_steps) == logs_of(whole.select(index), out.num_steps)
        torch.testing.assert_close(out.behaviour_logp, whole.select(index).behaviour_logp, rtol=0, atol=1e-12)


@pytest.mark.parametrize("confidence", ["stored", "current"])
@pytest.mark.parametrize("temperature", [0.0, TEMPERATURE])
def test_without_rounds_it_is_llada_with_a_step_per_token(confidence, temperature):
    settings = {"gen_length": 4, "temperature": temperature}
    plain = generate(Table(longest=6), [[1, 0], [2], []], **settings)
    for more in ({"loop_steps": 0}, {"init_unmask_ratio": 0.0}):
        out = generate(
            Table(longest=6), [[1, 0], [2], []], sampler="remdm_llada", confidence=confidence, **settings, **more
        )
        assert out.completions == plain.completions
        assert torch.equal(out.reveal_step, plain.reveal_step)
        torch.testing.assert_close(out.behaviour_logp, plain.behaviour_logp, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("confidence", ["stored", "current"])
def test_of_equals_the_first_written_is_hidden_and_never_a_hidden_one(confidence):
    """All but the first position are certain, so that they are drafted and then judged alike."""
    model = Table(longest=5)
    for n, table in model.tables.items():
        sure = torch.full_like(table, -math.inf).index_fill(-1, torch.tensor([1]), 0.0)
        model.tables[n] = torch.where(torch.arange(n)[:, None] >= 2, sure, table)
    settings = {"sampler": "remdm_llada", "init_unmask_ratio": 0.5, "loop_steps": 1, "confidence": confidence}
    events = generate(model, [[1]], gen_length=4, **settings).events
    assert events.position[events.op == Op.REMASK].tolist() == [1]


def test_as_many_are_exchanged_as_are_written_at_a_time_if_not_said():
    settings = {"gen_length": 4, "sampler": "remdm_llada", "unmask_k": 2, "init_unmask_ratio": 0.5, "loop_steps": 2}
    assert generate(Table(longest=5), [[1]], **settings).nfe == [4]
    out = generate(Table(longest=5), [[1]], **settings)
    assert int((out.events.op == Op.REMASK).sum()) == 2 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": "lowest"}, "confidence is 'lowest'; expected 'stored' or 'current'"),
        ({"order": "margin"}, "order is 'margin'"),
        ({"init_unmask_ratio": 1.2}, "init_unmask_ratio is 1.2; expected a number from 0 to 1"),
        ({"unmask_k": 0}, "unmask_k is 0; expected at least 1"),
        ({"remask_k": 0}, "remask_k is 0; expected at least 1"),
        ({"loop_steps": -1}, "loop_steps is -1; expected at least 0"),
        ({"steps": 4}, "decides by itself how many"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        generate(Table(longest=5), [[1]], gen_length=4, sampler="remdm_llada", **options)
