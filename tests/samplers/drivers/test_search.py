"""Tree search over slot orders against exhaustive search, and against the same search written without the library."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from dllm_rl.errors import DataError, RecipeError
from dllm_rl.samplers.cache import Dual
from dllm_rl.samplers.drivers.search import Mcts
from dllm_rl.samplers.generate import generate
from tests.samplers.drivers.oracle import (
    RAGGED,
    assert_fixed_tokens_stay,
    assert_log_replays,
    assert_rows_stand_alone,
    probabilities,
    rows_shown,
    run_driver,
    sampler_of,
)
from tests.samplers.oracle import Table

State = tuple[int, ...]
WORDS = 3


def sampler(model: Table, length: int = 3, slot: int = 1, **request):
    return sampler_of(model, "rl", length, request.pop("temperature", 0.0), block_length=slot, **request)


def fill(model: Table, state: State, slot: int, size: int = 1) -> tuple[State, list[float]]:
    """Write the likeliest tokens of a slot, the surest position first; with their probabilities of the full softmax."""
    confidences = []
    while places := [i for i in range(slot * size, (slot + 1) * size) if state[i] == WORDS]:
        seen = probabilities(model, [1], state)
        place = max(places, key=lambda i, seen=seen: max(seen[i]))
        logits = model.logits(torch.tensor([[1, *state]]))[0, 1 + place]
        token = int(logits[:WORDS].argmax())
        state = (*state[:place], token, *state[place + 1 :])
        confidences.append(float(logits.softmax(-1)[token]))
    return state, confidences


def open_slots(state: State, size: int = 1) -> list[int]:
    return sorted({i // size for i, token in enumerate(state) if token == WORDS})


def follow(model: Table, state: State, share: float) -> tuple[list[int], list[float], float]:
    """The best order from here by exhaustive search, the confidences along it, and the lead of its closest choice.

    Each choice maximises the value of its slot, given that the same is done afterwards.
    """
    if not open_slots(state):
        return [], [], math.inf
    options = []
    for place in open_slots(state):
        after, (own,) = fill(model, state, place)
        order, rest, gap = follow(model, after, share)
        value = share * own + (1 - share) * (sum(rest) / len(rest) if rest else own)
        options.append((value, [place, *order], [own, *rest], gap))
    options.sort(key=lambda option: -option[0])
    lead = options[0][0] - options[1][0] if len(options) > 1 else math.inf
    return options[0][1], options[0][2], min(lead, options[0][3])


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_enough_simulations_find_the_best_order(share):
    tested, unlike = 0, 0
    for seed in range(8):
        model = Table(seed=seed, longest=4)
        best, _, gap = follow(model, (WORDS,) * 3, share)
        if gap < 0.04:
            continue
        out = run_driver(Mcts(120, exploration=0.5, slot_weight=share), model, [[1]], sampler(model))
        assert out.orders == [best], seed
        assert out.trajectory.reveal_step[0].argsort().tolist() == best
        tested += 1
        unlike += best != generate(model, [[1]], gen_length=3, sampler="rl").reveal_step[0].argsort().tolist()
    assert tested >= 3
    assert unlike >= 1


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def plain_search(model: Table, length: int, size: int, sims: int, constant: float, share: float):
    """The search in a few dictionaries; orders, visits and forwards."""
    visits: dict[tuple[State, int], int] = {}
    totals: dict[tuple[State, int], float] = {}
    priors: dict[State, dict[int, float]] = {}
    filled: dict[tuple[State, int], tuple[State, list[float]]] = {}
    cost = [0]

    def expand(state: State) -> bool:
        if state in priors:
            return False
        seen = probabilities(model, [1], state)
        peak = {
            slot: mean([max(seen[i]) for i in range(slot * size, (slot + 1) * size) if state[i] == WORDS])
            for slot in open_slots(state, size)
        }
        priors[state] = {slot: value / sum(peak.values()) for slot, value in peak.items()}
        cost[0] += bool(peak)
        return True

    def urgency(state: State, slot: int) -> float:
        count = visits.get((state, slot), 0)
        value = totals[state, slot] / count if count else 0.0
        passed = 1 + sum(visits.get((state, other), 0) for other in priors[state])
        return value + constant * priors[state][slot] * math.sqrt(passed) / (1 + count)

    def simulate(state: State) -> None:
        path, new = [], False
        while priors[state] and not new:
            slot = max(priors[state], key=lambda slot, state=state: urgency(state, slot))
            if (state, slot) not in filled:
                filled[state, slot] = fill(model, state, slot, size)
                cost[0] += len(filled[state, slot][1])
                new = expand(filled[state, slot][0])
            path.append((state, slot))
            state = filled[state, slot][0]
        rest = []
        for slot in open_slots(state, size):
            state, own = fill(model, state, slot, size)
            rest += own
            cost[0] += len(own)
        for edge in reversed(path):
            own = filled[edge][1]
            totals[edge] = totals.get(edge, 0.0) + share * mean(own) + (1 - share) * mean(rest or own)
            visits[edge] = visits.get(edge, 0) + 1
            rest += own

    state, order, counts, means = (WORDS,) * length, [], [], []
    while open_slots(state, size):
        expand(state)
        for _ in range(sims if len(open_slots(state, size)) > 1 else 1):
            simulate(state)
        counts.append({slot: visits.get((state, slot), 0) for slot in priors[state]})
        means.append({slot: totals[state, slot] / count for slot, count in counts[-1].items() if count})
        order.append(max(counts[-1], key=lambda slot, counts=counts: counts[-1][slot]))
        state, own = fill(model, state, order[-1], size)
        cost[0] += len(own)
    return order, counts, means, cost[0]


@pytest.mark.parametrize(
    ("size", "sims", "constant", "share", "seed"),
    [(1, 1, 1.0, 0.3, 0), (1, 7, 0.0, 0.5, 1), (1, 20, 2.0, 0.0, 0), (1, 13, 10.0, 1.0, 1), (2, 9, 0.3, 0.3, 2)],
)
def test_every_visit_and_every_forward_is_that_of_the_search_written_plainly(size, sims, constant, share, seed):
    length = 4 if size == 1 else 6
    model = Table(seed=seed, longest=length + 1)
    out = run_driver(Mcts(sims, constant, share), model, [[1]], sampler(model, length, size))
    order, counts, means, cost = plain_search(model, length, size, sims, constant, share)
    assert out.orders == [order] and out.visits == [counts]
    for found, expected in zip(out.values[0], means, strict=True):
        assert found == pytest.approx(expected, abs=1e-12)
    assert out.forwards == [cost] and rows_shown(model) == cost


def test_visits_add_up():
    model = Table(longest=5)
    out = run_driver(Mcts(25, exploration=1.0), model, [[1], [2]], sampler(model, 4))
    for order, visits in zip(out.orders, out.visits, strict=True):
        assert sum(visits[0].values()) == 25
        # All that went through the first choice, but for the visit that made the node, chose again; then 25 more.
        assert sum(visits[1].values()) == visits[0][order[0]] - 1 + 25
        assert [set(counts) for counts in visits] == [set(order[i:]) for i in range(4)]
        assert sorted(order) == [0, 1, 2, 3]


def test_orders_that_lead_to_one_canvas_share_it():
    """Tokens do not depend on each other: of three slots there are 8 canvases, though 16 paths lead to them."""
    model = Table(longest=4)
    for n, table in model.tables.items():
        model.tables[n] = table[:1].expand_as(table)
    out = run_driver(Mcts(60, exploration=10.0), model, [[1]], sampler(model))
    priors, slots_filled, rolled_out, committed = 7, 3 + 6 + 3, 3 * 2 + 3 * 1, 3
    assert out.forwards == [priors + slots_filled + rolled_out + committed]


def test_slots_are_filled_by_the_sampler_and_stay_together():
    model = Table(longest=6)
    slots = sampler(model, 4, slot=2, temperature=1.0)
    out = run_driver(Mcts(8, exploration=0.5), model, [[0], [1], [2], [0, 1], [1, 2], []], slots)
    assert {tuple(order) for order in out.orders} == {(0, 1), (1, 0)}
    for row, order in enumerate(out.orders):
        when = out.trajectory.reveal_step[row].view(2, 2)
        assert sorted(when[order[0]].tolist()) == [1, 2] and sorted(when[order[1]].tolist()) == [3, 4]
    assert out.trajectory.exactness == "none"
    assert sum(out.forwards) == rows_shown(model)
    one = run_driver(Mcts(5), model, [[1]], sampler(model, 4, slot=4, temperature=1.0))
    assert one.orders == [[0]] and one.visits == [[{0: 1}]]
    plain = generate(model, [[1]], gen_length=4, sampler="rl", temperature=1.0)
    assert one.trajectory.completions == plain.completions


def test_what_is_committed_is_what_was_searched_and_the_same_seed_gives_it_again():
    model = Table(longest=6)
    slots = sampler(model, 4, slot=2, temperature=1.0)
    runs = [run_driver(Mcts(6), model, [[1]] * 3, slots, seed=seed) for seed in (0, 0, 1)]
    assert runs[0].trajectory.completions == runs[1].trajectory.completions != runs[2].trajectory.completions
    assert runs[0].visits == runs[1].visits


def test_rows_stand_alone_and_given_tokens_stay_and_the_log_replays():
    model = Table(longest=6)
    slots = sampler(model, 4, slot=2, temperature=1.0)
    assert_rows_stand_alone(Mcts(2), slots, model)
    assert_fixed_tokens_stay(Mcts(6), slots, model)
    assert_log_replays(run_driver(Mcts(6), model, [[1]] * 4, slots).trajectory, model)
    given = run_driver(Mcts(6), model, [[1]], slots, fixed=[[0, 1, None, 2]])
    assert given.orders == [[1]]
    assert run_driver(Mcts(6), model, [[1]], slots, fixed=[[0, 1, 2, 2]]).orders == [[]]


def test_a_text_that_ends_leaves_nothing_to_search():
    model = Table(longest=5, eos_ids=(0,))
    for table in model.tables.values():
        table[..., 0] += 8.0
    slots = sampler(model, 4, slot=2, stop_at_eos=True)
    out = run_driver(Mcts(8, slot_weight=0.0), model, [[1]], slots)
    assert out.trajectory.completions == [[0] * 4]
    assert len(out.orders[0]) == (1 if out.orders[0][0] == 0 else 2)


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        call()


def test_what_cannot_be_searched_is_refused(tiny):
    model = Table(longest=6)
    refused(lambda: Mcts(0), "simulations is 0")
    refused(lambda: Mcts(exploration=-1.0), "exploration is -1.0")
    refused(lambda: Mcts(exploration=float("inf")), "exploration is inf")
    refused(lambda: Mcts(slot_weight=1.2), "slot_weight is 1.2")
    refused(lambda: Mcts()(model, [[1]], sampler(model), torch.tensor([0]), policy=Dual()), "set cache to 'none'")
    model.spec = model.spec.__class__(mask_id=3, forbidden_ids=(3,), block_size=2)
    refused(lambda: run_driver(Mcts(), model, [[1]], sampler_of(model, "rl", 4)), "blocks from left to right only")
    with pytest.raises(DataError, match="no prompts"):
        run_driver(Mcts(), Table(), [], sampler(Table()))
    assert run_driver(Mcts(2), Table(longest=6), RAGGED, sampler(model=Table())).forwards[2] > 3
