"""Rules that write everything and hide the worst again: their laws, what they leave alone, and where they end."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from dllm_rl import rng
from dllm_rl.diffusion.trajectory import Op
from dllm_rl.errors import ModelContractError, RecipeError
from dllm_rl.samplers.drift import measure_drift
from dllm_rl.samplers.generate import begin, generate, trajectory
from dllm_rl.samplers.loop import advance, run
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request
from tests.samplers.oracle import Table
from tests.samplers.order_oracle import softmax
from tests.samplers.remask_oracle import Judge, Planning, Setting, linear, logs_of, remasking

T = 0.8


def narrowed(logits: list[float], temperature: float, top_p: float) -> list[float]:
    """The distribution that confidence is read from: the mask is one of its tokens."""
    p = softmax([value / temperature for value in logits])
    by_mass = sorted(range(len(p)), key=lambda v: (-p[v], v))
    kept = [v for place, v in enumerate(by_mass) if sum(p[w] for w in by_mass[:place]) < top_p]
    return [p[v] / sum(p[w] for w in kept) if v in kept else 0.0 for v in range(len(p))]


def confidence(kind: str, top_p: float = 1.0) -> Judge:
    def judge(logits: list[float], plan: float, token: int) -> float:
        p = narrowed(logits, T, top_p)
        if kind == "llada":
            return p[token]
        if kind == "entropy":
            return sum(x * math.log(x) for x in p if x)
        first, second = sorted(p)[-1:-3:-1]
        return first - second

    return judge


def plan_of(logits: list[float], plan: float, token: int) -> float:
    return plan


def logit_of(logits: list[float], plan: float, token: int) -> float:
    return logits[token]


def cosine(r: float) -> float:
    return math.cos(r * math.pi / 2)


LLADA = confidence("llada")
RULES: dict[str, tuple[dict[str, Any], list[int], Setting]] = {
    "rcr": ({"sampler": "rcr"}, [3], Setting(LLADA, True, [linear(3, 3)])),
    "rcr in two steps": ({"sampler": "rcr", "steps": 2}, [3], Setting(LLADA, True, [linear(3, 2)])),
    "rcr by entropy": (
        {"sampler": "rcr", "conf_alg": "entropy"},
        [3],
        Setting(confidence("entropy"), True, [linear(3, 3)]),
    ),
    "rcr by margin": (
        {"sampler": "rcr", "conf_alg": "topk_margin"},
        [3],
        Setting(confidence("topk_margin"), True, [linear(3, 3)]),
    ),
    "rcr, cosine": ({"sampler": "rcr", "mode": "cosine"}, [3], Setting(LLADA, True, [linear(3, 3, cosine)])),
    "rcr, top-p": (
        {"sampler": "rcr", "top_p": 0.7},
        [3],
        Setting(confidence("llada", 0.7), True, [linear(3, 3)], top_p=0.7),
    ),
    "rcr, more steps than tokens": ({"sampler": "rcr", "steps": 5}, [2], Setting(LLADA, True, [linear(2, 5)])),
    "rcr over blocks": (
        {"sampler": "rcr", "block_length": 2},
        [2, 2],
        Setting(LLADA, True, [linear(2, 2)] * 2, whole=True),
    ),
    "rcr over longer blocks": (
        {"sampler": "rcr", "block_length": 3, "top_p": 0.5},
        [3, 3],
        Setting(confidence("llada", 0.5), True, [linear(3, 3)] * 2, whole=True, top_p=0.5),
    ),
    "rcr within blocks": (
        {"sampler": "rcr", "block_length": 2, "scope": "block"},
        [2, 2],
        Setting(LLADA, True, [linear(2, 2)] * 2),
    ),
    "remedi": ({"sampler": "remedi"}, [3], Setting(plan_of, False, [linear(3, 3)])),
    "remedi in two steps": ({"sampler": "remedi", "steps": 2}, [3], Setting(plan_of, False, [linear(3, 2)])),
    "remedi, cosine": ({"sampler": "remedi", "mode": "cosine"}, [3], Setting(plan_of, False, [linear(3, 3, cosine)])),
    "remedi in blocks": (
        {"sampler": "remedi", "block_length": 2},
        [2, 2],
        Setting(plan_of, False, [linear(2, 2)] * 2),
    ),
    "remedi by logits": ({"sampler": "remedi", "order": "logit"}, [3], Setting(logit_of, False, [linear(3, 3)])),
}


def table(kind: str, longest: int = 5) -> Planning:
    model = Planning(seed=4, longest=longest)
    if kind == "tied":
        for tables in (model.tables, model.planner.tables):
            for n in tables:
                tables[n] = torch.zeros_like(tables[n])
    return model


def check_law(model: Planning, law: dict, prompt: list[int], length: int, way: dict[str, Any], **more: Any) -> None:
    """The laws sum to 1, and what is recorded of rollouts is their probability."""
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    out = generate(model, [prompt] * 60, gen_length=length, temperature=T, **way, **more)
    assert out.exactness == "exact"
    seen = logs_of(out)
    assert set(seen) <= law.keys()
    expected = torch.tensor([law[log] for log in seen], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, expected, rtol=0, atol=1e-10)
    assert (out.selection_logp == 0).all()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "random") for name in RULES),
        *((name, "tied") for name in ("rcr", "rcr over blocks", "remedi by logits")),
    ],
)
def test_behaviour_logp_is_the_probability_of_the_rollout(name, kind):
    way, blocks, rule = RULES[name]
    model = table(kind, longest=sum(blocks) + 1)
    for prompt in ([0], [1], [2]):
        check_law(model, remasking(model, prompt, blocks, rule), prompt, sum(blocks), way)


@pytest.mark.parametrize("name", ["rcr", "remedi"])
@pytest.mark.parametrize("given", [[None, 0, None, None], [2, None, 1, None]], ids=str)
def test_tokens_given_are_no_candidates(name, given):
    """Neither counted, nor hidden, though the surest or the least sure of all."""
    way, _, rule = RULES[name]
    model, holes = table("random"), given.count(None)
    way = {**way, "steps": holes}
    law = remasking(model, [1], [4], rule._replace(quotas=[linear(holes, holes)]), given)
    check_law(model, law, [1], 4, way, fixed=[given] * 60)


def test_given_tokens_stay_when_earlier_blocks_are_opened_again():
    way, _, rule = RULES["rcr over blocks"]
    given = [None, 1, None, None]
    model = table("random")
    law = remasking(model, [1], [2, 2], rule._replace(quotas=[linear(1, 2), linear(2, 2)]), given)
    assert any(0 in again for log in law for _, again in log[-2:])
    check_law(model, law, [1], 4, way, fixed=[given] * 60)


RAGGED = [[1, 0], [2], [], [0, 0], [1]]
IDS = [7, 3, 5, 9, 1]
WAYS: list[dict[str, Any]] = [
    {"sampler": "rcr", "block_length": 2},
    {"sampler": "rcr", "block_length": 2, "scope": "block"},
    {"sampler": "rcr", "conf_alg": "entropy", "mode": "pow2", "temperature": 0.0},
    {"sampler": "rcr", "rcr": False, "block_length": 2},
    {"sampler": "rcr", "rcr": False, "conf_alg": "random"},
    {"sampler": "rcr", "cfg_scale": 0.7, "steps": 2},
    {"sampler": "remedi", "block_length": 2},
    {"sampler": "remedi", "order": "logit", "cfg_scale": 0.7},
]


def ragged(model: Table, way: dict[str, Any], rows: list[int], **more: Any):
    prompts, ids = [RAGGED[row] for row in rows], [IDS[row] for row in rows]
    return generate(model, prompts, **{"gen_length": 4, "temperature": 1.0, **way}, sample_ids=ids, **more)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_row_does_not_depend_on_the_others(way, stop):
    """Not on their order either, nor on whether they have ended."""
    model = Planning(longest=6)
    model.spec = replace(model.spec, eos_ids=(2,))
    together = ragged(model, way, [0, 1, 2, 3, 4], stop_at_eos=stop)
    for rows in ([3, 0, 4, 1, 2], [2], [4]):
        few, same = ragged(model, way, rows, stop_at_eos=stop), together.select(rows)
        assert few.completions == same.completions
        assert few.nfe == same.nfe
        assert logs_of(few) == logs_of(same)
        torch.testing.assert_close(few.behaviour_logp, same.behaviour_logp, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_log_replays_every_canvas_and_every_draw(way):
    model = Planning(longest=6)
    out = ragged(model, way, [0, 1, 2, 3, 4])
    shown = model.seen[::2] if way.get("cfg_scale") else model.seen
    assert len(shown) == out.num_steps == 4 if way.get("steps") is None else 2
    for step, canvas in enumerate(shown):
        assert torch.equal(out.canvas(step), canvas)
    assert torch.equal(out.canvas(0)[:, :2], out.canvas(out.num_steps)[:, :2])
    assert measure_drift(model, out).largest < 1e-12


@pytest.mark.parametrize("name", ["rcr", "remedi"])
@pytest.mark.parametrize("mode", ["linear", "cosine", "pow2", "log", "exp"])
def test_as_many_tokens_stay_as_the_quotas_say(name, mode):
    model = Planning(longest=6)
    shares = {
        "linear": lambda r: 1 - r,
        "cosine": cosine,
        "pow2": lambda r: 1 - r**2,
        "log": lambda r: min(1.0, -math.log(r) / math.log(5)),
        "exp": lambda r: 1 - 5 ** (r - 1),
    }
    out = generate(model, [[1]] * 20, sampler=name, gen_length=5, steps=4, temperature=1.0, mode=mode)
    stay = [sum(linear(5, 4, shares[mode])[:i]) for i in range(5)]
    for step in range(out.num_steps + 1):
        written = out.completion_canvas(step) != out.mask_id
        assert written.sum(dim=1).tolist() == [stay[step]] * 20
    assert out.nfe == [stay.index(5)] * 20
    if mode == "linear":
        kept = [out.completion_canvas(step) != out.mask_id for step in range(5)]
        assert any(bool((before & ~after).any()) for before, after in pairwise(kept)), "some token was hidden again"


def test_a_fork_goes_on_as_its_row_would_have():
    model = Planning(longest=6)
    for way in (WAYS[0], WAYS[6]):
        options = dict(way)
        request = Request(gen_length=4, block_length=options.pop("block_length"), temperature=1.0)
        sampler = make_sampler(model.spec, options.pop("sampler"), options, request)
        keys = rng.sample_keys(0, torch.tensor(IDS))
        whole = ragged(model, way, [0, 1, 2, 3, 4])
        state = begin(model, RAGGED, sampler, keys)
        for _ in range(3):  # in the second block
            state = advance(state, sampler, model.spec.mask_id)
        index = torch.tensor([4, 1, 1])
        forked = run(state.select(index), sampler, model.spec.mask_id)
        out = trajectory(forked, [RAGGED[i] for i in index], model, sampler)
        assert out.completions == whole.select(index.tolist()).completions
        assert logs_of(out) == logs_of(whole.select(index.tolist()))
        assert torch.equal(out.behaviour_logp, whole.select(index.tolist()).behaviour_logp)


def deaf() -> Planning:
    """A network that says the same whatever it is shown, and so does its planner."""
    model = Planning(longest=6, steady=True)
    for n, logits in model.tables.items():
        model.tables[n] = logits[:1].expand_as(logits).clone()
    return model


@pytest.mark.parametrize(
    ("way", "known"),
    [
        ({"sampler": "rcr", "conf_alg": "entropy"}, {"sampler": "entropy"}),
        ({"sampler": "rcr", "conf_alg": "topk_margin"}, {"sampler": "margin"}),
        ({"sampler": "rcr", "conf_alg": "topk_margin", "scope": "block", "block_length": 2}, {"sampler": "margin"}),
        ({"sampler": "rcr", "conf_alg": "llada", "temperature": 0.0}, {"sampler": "llada"}),
        ({"sampler": "remedi"}, {"sampler": "planner_pl", "planner_temperature": 0.0}),
        ({"sampler": "remedi", "block_length": 2}, {"sampler": "planner_pl", "planner_temperature": 0.0}),
    ],
    ids=str,
)
def test_where_nothing_is_ever_seen_in_another_light_they_only_write(way, known):
    """What is kept is then what would have been written, by the same draws, at the same steps."""
    common = {"gen_length": 4, "steps": 4, "temperature": 1.0}
    shape = {"block_length": way.get("block_length")}
    out = generate(deaf(), RAGGED, **{**common, **way})
    same = generate(deaf(), RAGGED, **{**common, **shape, **known, "temperature": way.get("temperature", 1.0)})
    kept = torch.zeros_like(out.reveal_step)
    for step in range(out.num_steps, 0, -1):
        kept[out.completion_canvas(step) != out.mask_id] = step
    assert torch.equal(kept, same.reveal_step)
    for step in range(1, out.num_steps + 1):
        mine, theirs = out.completion_canvas(step), same.completion_canvas(step)
        new = same.reveal_step == step
        assert torch.equal(mine[new], theirs[new])


@pytest.mark.parametrize("block_length", [2, 4])
@pytest.mark.parametrize("name", ["rcr", "remedi"])
def test_with_one_step_per_block_nothing_is_hidden_again(name, block_length):
    settings = {"gen_length": 4, "block_length": block_length, "steps": 4 // block_length, "temperature": 1.0}
    model = Planning(longest=6)
    out, known = (generate(model, RAGGED, sampler=sampler, **settings) for sampler in (name, "llada"))
    assert not (out.events.op == Op.REMASK).any()
    assert out.completions == known.completions
    assert torch.equal(out.reveal_step, known.reveal_step)
    torch.testing.assert_close(out.behaviour_logp, known.behaviour_logp, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("way", "known", "exactness"),
    [
        ({"conf_alg": "llada"}, {"sampler": "llada"}, "exact_with_F"),
        ({"conf_alg": "entropy"}, {"sampler": "entropy"}, "exact"),
        ({"conf_alg": "topk_margin"}, {"sampler": "margin"}, "exact"),
        ({"conf_alg": "random"}, {"sampler": "llada", "remasking": "random"}, "exact"),
    ],
)
def test_without_remasking_they_are_the_known_orders(way, known, exactness):
    settings = {"gen_length": 4, "steps": 2, "temperature": 1.0}
    model = Table(longest=6)
    out = generate(model, RAGGED, sampler="rcr", rcr=False, **way, **settings)
    same = generate(model, RAGGED, **known, **settings)
    assert out.exactness == same.exactness == exactness
    assert out.completions == same.completions
    assert torch.equal(out.reveal_step, same.reveal_step)
    torch.testing.assert_close(out.behaviour_logp, same.behaviour_logp, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 0.0])
def test_confidence_without_remasking_is_that_of_the_distribution_drawn_from(temperature):
    """Temperature and top-p change the order; greedy draws are judged at temperature 1."""
    model = Table(longest=5)
    out = generate(model, [[1]], sampler="rcr", rcr=False, gen_length=4, temperature=temperature, top_p=0.6, steps=1)
    logits = model.logits(torch.tensor([[1, 3, 3, 3, 3]]))[0, 1:].tolist()
    p = [narrowed(row, temperature or 1.0, 0.6) for row in logits]
    expected = [math.log(q[v]) if q[v] else -math.inf for q, v in zip(p, out.completions[0], strict=True)]
    assert out.events.conf.tolist() == pytest.approx(expected, rel=1e-12)


def zero_for_one(model: Table, prompt: list[int], length: int, error: bool) -> list[list[int]]:
    """Remasking by margin, greedily, one token a step: the completion after each step, or the prompt when that is hit.

    Args:
        error: as published: 0 stands for positions that must not be hidden, and counts as 1.
    """
    mask = model.spec.mask_id
    canvas = torch.tensor([*prompt, *[mask] * length])
    stored, steps = torch.zeros(len(canvas), dtype=torch.float64), []
    for left in range(length - 1, -1, -1):
        hidden = canvas == mask
        p = model.logits(canvas[None])[0].softmax(dim=-1)
        best = p.topk(2, dim=-1).values
        canvas = torch.where(hidden, p[:, :mask].argmax(dim=-1), canvas)
        stored = torch.where(hidden, best[:, 0] - best[:, 1], stored)
        sure = torch.where(stored == 0, 1.0, stored) if error else stored.clone()
        if not error:
            sure[: len(prompt)] = math.inf
        canvas[sure.argsort(stable=True)[:left]] = mask
        steps.append(canvas.tolist())
    return steps


def flat(position: int) -> Table:
    """At one position all tokens are alike, whatever the canvas: a margin of exactly 0, the least there is."""
    model = Table(longest=4)
    for n in model.tables:
        model.tables[n][:, min(position, n - 1)] = 0.0
    return model


def certain() -> Table:
    """Each token is certain, to the last bit."""
    model = Table(longest=4)
    for n, logits in model.tables.items():
        model.tables[n] = torch.where(torch.arange(4) == 1, 900.0, 0.0).double().expand_as(logits).clone()
    return model


def test_the_published_zero_that_counts_as_one_is_not_reproduced():
    """No golden case meets it. A token of margin 0 is never hidden there, and here it is the first to be."""
    model = flat(position=2)
    out = generate(model, [[1]], sampler="rcr", conf_alg="topk_margin", gen_length=3)
    ours = [out.canvas(step)[0].tolist() for step in (1, 2, 3)]
    assert ours == zero_for_one(model, [1], 3, error=False)
    assert zero_for_one(model, [1], 3, error=True)[0][2] != out.mask_id == ours[0][2]


def test_a_prompt_is_not_hidden_where_tokens_are_certain():
    """There it counts as 1 like they do, and the sort decides."""
    model = certain()
    assert zero_for_one(model, [1], 3, error=True)[0][0] == model.spec.mask_id
    out = generate(model, [[1]], sampler="rcr", conf_alg="topk_margin", gen_length=3)
    assert [out.canvas(step)[0].tolist() for step in (1, 2, 3)] == [[1, 1, 3, 3], [1, 1, 1, 3], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ({"sampler": "rcr", "conf_alg": "lada"}, "conf_alg is 'lada'; expected one of llada, entropy"),
        ({"sampler": "rcr", "scope": "blocks"}, "scope is 'blocks'; expected one of canvas, block"),
        ({"sampler": "rcr", "conf_alg": "random"}, "conf_alg is 'random'.* set rcr to False"),
        ({"sampler": "rcr", "rcr": False, "scope": "block"}, "scope is 'block' and without rcr.*leave scope out"),
        ({"sampler": "rcr", "mode": "square"}, "mode is 'square'"),
        ({"sampler": "remedi", "mode": "pow-1"}, "mode is 'pow-1'"),
        ({"sampler": "remedi", "order": "logits"}, "order is 'logits'; expected one of planner, logit"),
        ({"sampler": "remedi", "steps": 3, "block_length": 2}, "steps 3 cannot be shared equally by 2 blocks"),
    ],
    ids=str,
)
def test_what_does_not_suit_is_refused(way, message):
    with pytest.raises(RecipeError, match=message):
        generate(Planning(longest=5), [[1]], gen_length=4, **way)


def test_without_a_planner_its_order_is_refused_and_that_of_logits_is_not():
    with pytest.raises(ModelContractError, match="planner"):
        generate(Table(longest=5), [[1]], gen_length=4, sampler="remedi")
    assert generate(Table(longest=5), [[1]], gen_length=4, sampler="remedi", order="logit").nfe == [4]
