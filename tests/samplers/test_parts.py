"""Components by themselves: quotas, selection, draws."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from dllm_rl import rng
from dllm_rl.diffusion.transform import Transform
from dllm_rl.samplers.adaptive import EntropyBounded
from dllm_rl.samplers.canvas import Canvas, blank_canvas
from dllm_rl.samplers.propose import Proposal, draw
from dllm_rl.samplers.quota import Even
from dllm_rl.samplers.select import highest
from tests.samplers.oracle import Table


def standing(opening: int, turn: int) -> Canvas:
    """A canvas of one row that stands at `turn` of a block that opened with `opening` hidden positions."""
    model = Table()
    model.max_positions = None
    canvas = blank_canvas(model, [[1]], torch.zeros(1, max(opening, 1), dtype=torch.int64), torch.zeros(1).long())
    return replace(canvas, opening=torch.tensor([opening]), turn=torch.tensor([turn]))


@pytest.mark.parametrize(("opening", "steps"), [(7, 3), (8, 4), (3, 7), (0, 4), (1, 1), (33, 32)])
def test_even_quotas_add_up_and_put_the_remainder_first(opening, steps):
    counts = [int(Even(steps)(standing(opening, turn))) for turn in range(steps)]
    assert sum(counts) == opening
    assert counts == sorted(counts, reverse=True)
    assert max(counts) - min(counts) <= 1


def test_even_quotas_are_those_of_the_published_code(shared):
    for case in json.loads((shared / "golden/generate.json").read_text())["get_num_transfer_tokens"]:
        counts = [int(Even(case["steps"])(standing(case["mask_num"], turn))) for turn in range(case["steps"])]
        assert counts == case["counts"]


def test_the_highest_scores_are_kept_and_ties_go_to_the_lowest_index():
    low = float("-inf")
    score = torch.tensor([[1.0, 3.0, 3.0, 3.0, 2.0], [low, 9.0, low, low, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    eligible = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 1, 1]], dtype=torch.bool)
    chosen = highest(score, eligible, torch.tensor([2, 2, 0]))
    assert chosen.tolist() == [
        [False, True, True, False, False],
        [False, False, True, False, True],  # minus infinity is still better than not eligible
        [False] * 5,
    ]


def proposal(logits: torch.Tensor, count: int, seed: int = 0) -> Proposal:
    index = torch.arange(count)
    return Proposal(torch.zeros_like(index), index, logits.expand(count, -1), rng.sample_keys(seed, index))


def test_draws_follow_the_distribution():
    logits = torch.tensor([1.0, -1.0, 0.5, 9.0, 0.0])
    transform = Transform(temperature=0.7, forbidden_ids=(3,))
    out = draw(proposal(logits, 40_000), transform)
    expected = torch.log_softmax(torch.tensor([1.0, -1.0, 0.5, float("-inf"), 0.0]).double() / 0.7, dim=-1)
    counts = torch.bincount(out.token, minlength=5)
    assert counts[3] == 0
    kept = [0, 1, 2, 4]
    chi_squared = ((counts - 40_000 * expected.exp()) ** 2 / (40_000 * expected.exp()))[kept].sum()
    assert chi_squared < 16.3  # 3 degrees of freedom, one in a thousand
    torch.testing.assert_close(out.logq, expected[out.token])


def test_a_tail_spread_over_many_tokens_is_drawn_as_often_as_it_should():
    """A tenth of the mass over 20 000 tokens: noise in half precision never reaches it."""
    logits = torch.zeros(20_001)
    logits[10_000] = torch.tensor(9.0 * 20_000).log()
    out = draw(proposal(logits, 2000), Transform())
    tail = out.token[out.token != 10_000]
    assert len(tail) == pytest.approx(200, abs=3 * (2000 * 0.1 * 0.9) ** 0.5)
    assert len(tail.unique()) > 0.97 * len(tail)
    assert float((tail > 10_000).double().mean()) == pytest.approx(0.5, abs=0.1)


def test_greedy_draws_take_the_first_of_equal_permitted_logits():
    out = draw(proposal(torch.tensor([0.0, 2.0, 5.0, 2.0]), 2), Transform(temperature=0.0, forbidden_ids=(2,)))
    assert out.token.tolist() == [1, 1]
    assert out.logq.isnan().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_entropies_of_all_but_the_largest_fit_the_budget_in_any_order(gamma, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    score = torch.randn(1, 8, generator=generator)
    eligible = torch.tensor([[1, 0, 1, 1, 1, 0, 1, 1]], dtype=torch.bool)
    index = eligible[0].nonzero()[:, 0]
    what = Proposal(torch.zeros_like(index), index, logits, rng.sample_keys(0, index))
    chosen = EntropyBounded(gamma)(score, eligible, what, standing(8, 0)).commit[0].nonzero()[:, 0].tolist()
    p = logits.softmax(dim=-1)
    entropy = dict(zip(index.tolist(), (-p * p.log()).sum(dim=-1).tolist(), strict=True))
    order = sorted(entropy, key=lambda i: -float(score[0, i]))
    heads = [[entropy[i] for i in order[:n]] for n in range(1, 7)]
    count = max(len(head) for head in heads if len(head) == 1 or sum(head) - max(head) <= gamma)
    assert chosen == sorted(order[:count])
