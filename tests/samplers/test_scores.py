"""Scores by themselves: their numbers, and the exact likelihood of those that no preset uses."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from dllm_rl import rng
from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import DataError, RecipeError
from dllm_rl.samplers.blocks import Blocks
from dllm_rl.samplers.canvas import Canvas, blank_canvas
from dllm_rl.samplers.generate import rollout
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.position_aware import Background, LinearPosition, PositionAware
from dllm_rl.samplers.processors import AscendingRise, DrawnEndsLast, EndsDiscounted, LikelyEndsLast, LinearRise
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.quota import Even
from dllm_rl.samplers.score import (
    DrawnProbability,
    Exponentiated,
    ExponentiatedDraw,
    Margin,
    MaxProbability,
    NegativeEntropy,
    Plausibility,
    as_drawn,
)
from dllm_rl.samplers.select import Threshold, TopK
from tests.samplers.needs import BACKGROUND, FREQUENCY, UNSEEN
from tests.samplers.oracle import Table
from tests.samplers.order_oracle import Moment, by_blind, by_drawn, ordered_steps_of, rollouts

LENGTH = 8
NARROW = Transform(temperature=0.5, forbidden_ids=(3,))


def proposal(seed: int = 0, words: int = 6) -> Proposal:
    """Predictions of all positions of two rows."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2 * LENGTH, words, generator=generator, dtype=torch.float64)
    row = torch.arange(2).repeat_interleave(LENGTH)
    return Proposal(row, torch.arange(LENGTH).repeat(2), logits, rng.sample_keys(0, torch.arange(2 * LENGTH)))


def canvas(forwards: tuple[int, int] = (0, 0), block_length: int = LENGTH) -> Canvas:
    """Two rows, one in its first block and one in its last."""
    blocks = (torch.arange(LENGTH) // block_length).expand(2, -1)
    model = Table(longest=1)
    model.max_positions = None
    blank = blank_canvas(model, [[1], [2]], blocks, torch.arange(2))
    last = LENGTH // block_length - 1
    return replace(blank, forwards=torch.tensor(forwards), block=torch.tensor([0, last]))


def expected_probs(transform: Transform) -> torch.Tensor:
    return torch.softmax(transform.permitted(proposal().logits) / transform.temperature, dim=-1)


@pytest.mark.parametrize("transform", [Transform(), NARROW])
def test_blind_scores_are_those_of_their_formulas(transform):
    p = expected_probs(transform)
    first, second = p.sort(dim=-1, descending=True).values[:, :2].T
    entropy = torch.tensor([-sum(x * math.log(x) for x in row if x > 0) for row in p.tolist()], dtype=torch.float64)
    for score, expected in [
        (MaxProbability(transform), first.log()),
        (Margin(transform), (first - second).log()),
        (Exponentiated(Margin(transform)), first - second),
        (NegativeEntropy(transform), -entropy),
    ]:
        torch.testing.assert_close(score.of_positions(proposal(), canvas()), expected, rtol=1e-12, atol=1e-12)
        assert not score.reads_plan


def test_no_lead_scores_lowest_and_a_point_mass_has_no_entropy():
    tied = replace(proposal(), logits=torch.zeros(2 * LENGTH, 6))
    assert (Margin().of_positions(tied, canvas()) == -math.inf).all()
    torch.testing.assert_close(
        NegativeEntropy().of_positions(tied, canvas()), torch.full((2 * LENGTH,), -math.log(6.0))
    )
    certain = replace(proposal(), logits=torch.tensor([[0.0] + [-math.inf] * 5]).expand(2 * LENGTH, -1))
    for score in (Margin(), NegativeEntropy()):
        assert (score.of_positions(certain, canvas()) == 0).all()


def test_a_small_lead_near_certainty_is_still_told_apart():
    """In float32 the two margins are both 1."""
    logits = torch.tensor([[0.0, -20.0], [0.0, -21.0]])
    near = Proposal(torch.zeros(2).long(), torch.arange(2), logits, torch.arange(2))
    first, second = Margin().of_positions(near, canvas())
    assert first < second


def test_plausibility_is_the_lower_of_two():
    p, q = expected_probs(Transform()), expected_probs(NARROW)
    expected = torch.minimum(p.amax(-1, keepdim=True), q / q.amax(-1, keepdim=True))
    score = Plausibility(drawn_from=NARROW).of_tokens(proposal(), canvas())
    torch.testing.assert_close(score.exp(), expected)
    with pytest.raises(RecipeError, match="at temperature 0"):
        Plausibility(drawn_from=Transform(temperature=0.0))


def test_the_distribution_drawn_from_is_that_of_temperature_1_for_greedy_draws():
    assert as_drawn(Transform(temperature=0.0, top_p=0.9, forbidden_ids=(1,))) == Transform(1.0, 0.0, (1,), 0.9)
    assert as_drawn(Transform(temperature=0.3)) == Transform(temperature=0.3)


def test_position_and_calibration():
    p = expected_probs(Transform())
    for lambd, alpha in [(0.3, 10.0), (0.0, 0.2), (1.0, 1.0)]:
        score = PositionAware(BACKGROUND, lambd, alpha).of_tokens(proposal(), canvas())
        for t, (index, row) in enumerate(zip(proposal().index.tolist(), p.tolist(), strict=True)):
            for v, mass in enumerate(row):
                surprise = min(-mass * math.log(FREQUENCY.get(v, UNSEEN)), alpha)
                assert float(score[t, v].exp()) == pytest.approx(math.exp(-lambd * index) * surprise, rel=1e-12)


def test_far_from_the_prompt_positions_are_still_told_apart():
    """exp(-i) is 0 in float32 from i = 104 on."""
    far = replace(proposal(), index=torch.arange(2 * LENGTH) + 500, logits=torch.zeros(2 * LENGTH, 6))
    score = PositionAware(BACKGROUND, 1.0, 10.0).of_tokens(far, canvas())
    assert (score[1:] < score[:-1]).all()


@pytest.mark.parametrize("block_length", [LENGTH, 4])
def test_linear_position_scales_each_row_by_itself(block_length):
    weight, alpha = 0.3, 0.9
    standing = canvas(block_length=block_length)
    whole = proposal()
    kept = whole.select(standing.window[whole.row, whole.index])
    score = LinearPosition(BACKGROUND, weight, alpha, Transform(forbidden_ids=(3,))).of_positions(kept, standing)
    for row in (0, 1):
        mine = kept.row == row
        p = torch.softmax(kept.logits[mine], dim=-1)
        c = []
        for probs in p.tolist():
            v = max((w for w in range(6) if w != 3), key=lambda w: probs[w])
            c.append(min(-probs[v] * math.log(FREQUENCY.get(v, UNSEEN)), alpha))
        assert len(c) == block_length and len(set(c)) > 1
        expected = [
            (1 - weight) * (x - min(c)) / (max(c) - min(c)) + weight * (block_length - i) / block_length
            for i, x in enumerate(c)
        ]
        assert score[mine].tolist() == pytest.approx(expected, rel=1e-12)


def test_where_all_positions_are_alike_their_place_decides():
    alike = replace(proposal(), logits=torch.zeros(2 * LENGTH, 6))
    score = LinearPosition(BACKGROUND, 0.5, 10.0, Transform()).of_positions(alike, canvas())
    assert score[:LENGTH].tolist() == [0.5 * (LENGTH - i) / LENGTH for i in range(LENGTH)]


def test_factors_rise_to_their_end():
    for steps, at, share in [(5, 0, 0.0), (5, 3, 0.75), (4, 1, 1 / 3), (5, 4, 1.0), (5, 9, 1.0), (1, 0, 1.0)]:
        expected = 0.2 + 0.6 * share
        assert LinearRise(0.2, 0.8, steps)(canvas((at, 0)))[0] == pytest.approx(expected, rel=1e-12)
    for steps, at, share in [(4, 0, 1 / 16), (4, 2, 7 / 16), (4, 3, 15 / 16), (4, 7, 15 / 16), (1, 0, 1.0)]:
        assert AscendingRise(0.2, 0.8, steps)(canvas((at, 0)))[0] == pytest.approx(0.2 + 0.6 * share)


def test_ends_are_discounted_by_where_their_row_stands():
    plain = DrawnProbability().of_tokens(proposal(), canvas())
    factor = LinearRise(0.1, 0.9, 5)
    score = EndsDiscounted(DrawnProbability(), (1, 4), factor).of_tokens(proposal(), canvas((0, 3)))
    ratio = (score - plain).exp().view(2, LENGTH, 6)
    for row, gamma in enumerate([0.1, 0.7]):
        expected = torch.tensor([1.0, gamma, 1.0, 1.0, gamma, 1.0], dtype=torch.float64)
        torch.testing.assert_close(ratio[row], expected.expand(LENGTH, -1))


def test_ends_last():
    score = DrawnEndsLast(DrawnProbability(), (1, 4)).of_tokens(proposal(), canvas())
    plain = DrawnProbability().of_tokens(proposal(), canvas())
    assert (score[:, [1, 4]] == -math.inf).all()
    assert torch.equal(score[:, [0, 2, 3, 5]], plain[:, [0, 2, 3, 5]])
    likeliest = proposal().logits.argmax(dim=-1)
    blind = LikelyEndsLast(Margin(), (1, 4)).of_positions(proposal(), canvas())
    ends = (likeliest == 1) | (likeliest == 4)
    assert 0 < int(ends.sum()) < len(ends)
    assert torch.equal(blind == -math.inf, ends)
    assert torch.equal(blind[~ends], Margin().of_positions(proposal(), canvas())[~ends])
    # An id that cannot be drawn is not what the position would be written with.
    without = LikelyEndsLast(Margin(), (1,), Transform(forbidden_ids=(1,))).of_positions(proposal(), canvas())
    assert (without > -math.inf).all()


EVEN = Even(2)
ENDS = (2,)


def even(at: Moment) -> int:
    return at.length // 2 + (at.turn < at.length % 2)


def gate(at: Moment, i: int, v: int) -> float:
    return min(max(at.p[i]), at.q[i][v] / max(at.q[i]))


def surest(at: Moment, i: int) -> float:
    likeliest = max(range(3), key=lambda v: at.p[i][v])
    return -1.0 if likeliest in ENDS else max(at.p[i][:3]) / sum(at.p[i][:3])


DRAWS = Transform(temperature=0.7, forbidden_ids=(3,))
PERMITTED = Transform(forbidden_ids=(3,))
PAIRS = {
    "plausibility above a threshold": (
        Plausibility(DRAWS),
        Threshold(0.45),
        by_drawn(gate, lambda at, scores: max(1, sum(score >= 0.45 for score in scores))),
    ),
    "plausibility, the best": (Plausibility(DRAWS), TopK(EVEN), by_drawn(gate, lambda at, scores: even(at))),
    "drawn ends last": (
        DrawnEndsLast(DrawnProbability(), ENDS),
        TopK(EVEN),
        by_drawn(lambda at, i, v: -1.0 if v in ENDS else at.p[i][v], lambda at, scores: even(at)),
    ),
    "drawn ends last above a threshold": (
        DrawnEndsLast(DrawnProbability(), ENDS),
        Threshold(0.5),
        by_drawn(
            lambda at, i, v: -1.0 if v in ENDS else at.p[i][v],
            lambda at, scores: max(1, sum(score >= 0.5 for score in scores)),
        ),
    ),
    "likely ends last": (
        LikelyEndsLast(MaxProbability(PERMITTED), ENDS, PERMITTED),
        TopK(EVEN),
        by_blind(surest, even),
    ),
    "a probability, not its logarithm": (
        ExponentiatedDraw(DrawnProbability()),
        TopK(EVEN),
        by_drawn(lambda at, i, v: at.p[i][v], lambda at, scores: even(at)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_behaviour_logp_is_the_probability_of_the_rollout(name):
    score, select, rule = PAIRS[name]
    model = Table(longest=5)
    law = rollouts(model, [1], [4], rule, 0.7)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    keys = rng.sample_keys(3, torch.arange(50))
    out = rollout(model, [[1]] * 50, Sampler(DRAWS, score, select, Blocks((4,))), keys)
    expected = torch.tensor([law[steps] for steps in ordered_steps_of(out)], dtype=torch.float64).log()
    torch.testing.assert_close(out.behaviour_logp, expected, rtol=0, atol=1e-9)


def test_a_background_is_read_from_counts(tmp_path):
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"num_token": 20, "p_baseline_dict": {"0": 10, "2": 4}}))
    table = Background.load(str(path)).log_frequencies(torch.zeros(1, 4, dtype=torch.float64))
    torch.testing.assert_close(table.exp(), torch.tensor([0.5, 0.05, 0.2, 0.05], dtype=torch.float64))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSONDecodeError.*expected a JSON file"),
        ('{"num_token": 3, "token_frequency_dict": {"1": 2}}', "KeyError: 'p_baseline_dict'"),
        ('{"num_token": 3, "p_baseline_dict": {"one": 2}}', "ValueError"),
        ('{"num_token": 3, "p_baseline_dict": [1]}', "AttributeError"),
        ('{"num_token": 0, "p_baseline_dict": {}}', "counted from 0 tokens"),
        ('{"num_token": 3, "p_baseline_dict": {"1": 4}}', "token 1 is 1.33"),
        ('{"num_token": 3, "p_baseline_dict": {"1": 0}}', "token 1 is 0.0; expected above 0"),
        ('{"num_token": 3, "p_baseline_dict": {"-1": 1}}', "token -1"),
    ],
)
def test_a_background_that_cannot_be_read_is_refused(tmp_path, content, message):
    path = tmp_path / "counts.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        Background.load(str(path))


def test_a_background_of_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(DataError, match="background .*: FileNotFoundError"):
        Background.load(str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="background has token 9 and the model 6 tokens"):
        Background.from_probabilities({9: 0.1}, 0.1).log_frequencies(proposal().logits)
    with pytest.raises(DataError, match="token unseen is 0.0"):
        Background.from_probabilities({}, 0.0)
