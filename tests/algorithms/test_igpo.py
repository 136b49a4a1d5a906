"""IGPO against the paper's objective, its theory, and the gradient that its docstring states, by enumeration."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dllm_rl.algorithms import IGPO
from dllm_rl.algorithms.base import Material
from dllm_rl.algorithms.hints import HintSettings
from dllm_rl.samplers.generate import generate
from dllm_rl.training.backward import score_all, score_group, score_with_entropy
from tests.algorithms.cases import ELBO, MASK, make_batch, make_material, make_scores
from tests.training.small import SmallDenoiser

EVERYTHING = IGPO(entropy_share=1.0, kl_coefficient=0)


def given_and_written(material: Material) -> Tensor:
    """[B, N], by hand: given tokens up to the first end of text, which is token 0."""
    trajectory = material.trajectory
    assert trajectory is not None
    before = material.sequences.tokens.shape[1] - trajectory.gen_length
    where = torch.zeros_like(material.sequences.scored)
    for row, (ids, given) in enumerate(zip(trajectory.completions, trajectory.given.tolist(), strict=True)):
        end = ids.index(0) if 0 in ids else len(ids)
        where[row, before : before + end] = torch.tensor(given[:end])
    return where


def test_given_tokens_are_scored_on_one_view_that_hides_the_completion_and_shows_the_prompt() -> None:
    material = make_material(EVERYTHING)
    batch = EVERYTHING.prepare(material, material.keys, MASK)
    assert len(batch.views) == 4
    sequences = material.sequences
    assert (batch.views.canvas[sequences.completion] == MASK).all()
    assert torch.equal(batch.views.canvas[sequences.prompt], sequences.tokens[sequences.prompt])
    given = given_and_written(material)
    assert given.sum() >= 5 and not (given & sequences.scored).any()
    assert torch.equal(batch.views.scored, sequences.scored | given)
    assert torch.equal(EVERYTHING.scope(sequences).attend, sequences.attend)


def test_nothing_after_the_first_end_of_text_is_scored_given_or_drawn() -> None:
    material = make_material(EVERYTHING)
    rollout = material.trajectory
    assert rollout is not None
    ended = replace(rollout, eos_ids=(int(rollout.tokens[3, 3]), *rollout.eos_ids))
    assert ended.given[3, 4] and not ended.written[3, 4]
    batch = EVERYTHING.prepare(replace(material, sequences=ended.sequences(), trajectory=ended), material.keys, MASK)
    completions = batch.views.scored[:, 2:]
    assert torch.equal(completions, ended.written)
    assert not completions[3, 4]
    elbo = IGPO(corruption=ELBO, num_draws=4)
    seen = elbo.prepare(replace(material, sequences=ended.sequences(), trajectory=ended), material.keys, MASK).sequences
    assert torch.equal(seen.attend, seen.attend & (~seen.completion | seen.scored)), "what comes later is not shown"
    assert torch.equal(seen.scored[:, 2:], ended.written)


def kept_by_hand(given: Tensor, scored: Tensor, entropy: Tensor, share: float) -> Tensor:
    kept = scored & ~given
    for row in range(len(given)):
        places = [i for i in range(given.shape[1]) if given[row, i] and scored[row, i]]
        best = sorted(places, key=lambda i: (-float(entropy[row, i]), i))
        kept[row, best[: max(1, math.floor(share * len(places)))]] = True
    return kept


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.7, 0.99])
def test_the_most_uncertain_share_of_the_hints_is_kept_ties_to_the_left(share: float) -> None:
    algorithm = IGPO(entropy_share=share)
    material = make_material(algorithm)
    batch = algorithm.prepare(material, material.keys, MASK)
    generator = torch.Generator().manual_seed(0)
    given = given_and_written(material)
    for case in range(6):
        entropy = torch.rand(given.shape, generator=generator, dtype=torch.float64)
        entropy = (torch.floor(entropy * 2) if case % 2 else entropy) * batch.views.scored  # halves: many ties
        kept = algorithm.filtered(material, batch, entropy)
        expected = kept_by_hand(given, batch.views.scored, entropy, share)
        assert torch.equal(kept.views.scored, expected)
        assert torch.equal(kept.sequences.scored, expected)
        assert torch.equal(kept.views.weight, batch.views.weight * expected)
        assert torch.equal(kept.views.canvas, batch.views.canvas)
    assert algorithm.needs_entropy(material) and not EVERYTHING.needs_entropy(material)
    rollout = material.trajectory
    assert rollout is not None
    free = replace(material, sequences=material.sequences.select(torch.tensor([1])), trajectory=rollout.select([1]))
    assert not algorithm.needs_entropy(free), "without hints nothing more is scored"


@pytest.mark.parametrize("draws", [1, 5])
def test_on_elbo_views_a_position_has_the_mean_entropy_of_the_views_that_score_it(draws: int) -> None:
    algorithm = IGPO(corruption=ELBO, num_draws=draws, entropy_share=0.7)
    material = make_material(algorithm)
    batch = algorithm.prepare(material, material.keys, MASK)
    generator = torch.Generator().manual_seed(draws)
    entropy = torch.rand(batch.views.scored.shape, generator=generator, dtype=torch.float64) * batch.views.scored
    mean = torch.full(batch.sequences.scored.shape, -1.0, dtype=torch.float64)
    for row, place in batch.sequences.scored.nonzero().tolist():
        views = [v for v in range(draws * row, draws * row + draws) if batch.views.scored[v, place]]
        if views:
            mean[row, place] = sum(float(entropy[v, place]) for v in views) / len(views)
    given = given_and_written(material)
    ranked = batch.sequences.scored & (~given | (mean >= 0))
    expected = kept_by_hand(given, ranked, mean, 0.7)
    assert (draws == 1) == bool((given & (mean < 0)).any()), "with one view some hints are not scored at all"
    kept = algorithm.filtered(material, batch, entropy)
    assert torch.equal(kept.sequences.scored, expected)
    assert torch.equal(kept.views.scored, batch.views.scored & expected[batch.views.row])


def test_the_gradient_is_exactly_zero_at_filtered_positions() -> None:
    """In a one-layer model with an embedding per place: sequence ratios, KL, off policy; the entropies are its own."""
    algorithm = IGPO(entropy_share=0.2, kl_coefficient=0.5)
    material, model = make_material(algorithm), SmallDenoiser(seed=1)
    for row in (0, 2, 3):
        one = _only(material, row)
        batch = algorithm.prepare(one, one.keys, MASK)
        scores = score_with_entropy(model, batch, 1)
        batch = algorithm.filtered(one, batch, scores.entropy)
        filtered = given_and_written(one) & ~batch.views.scored
        assert filtered.sum() == given_and_written(one).sum() - 1 > 0
        batch = replace(
            batch,
            advantage=torch.tensor([0.7], dtype=torch.float64),
            behaviour_logp=(scores.logp - 0.1) * batch.views.scored,
            reference_logp=(scores.logp - 0.3) * batch.views.scored,
        )
        found = score_group(model, batch, torch.tensor([0]))
        (gradient,) = torch.autograd.grad(algorithm.loss(batch, found).total, model.place)
        for column, learns in enumerate(batch.views.scored[0].tolist()):
            assert bool(gradient[column].abs().sum() > 0) == learns, (row, column)


def _only(material: Material, row: int) -> Material:
    index = torch.tensor([row])
    assert material.trajectory is not None
    return Material(material.sequences.select(index), material.keys[index], None, material.trajectory.select([row]))


def test_the_loss_is_the_papers() -> None:
    """min(rho A, clip(rho) A) with one rho per sequence, from the mean log-ratio of what is kept, less k3 per token."""
    algorithm = IGPO(entropy_share=0.5, kl_coefficient=0.04, clip_low=0.2, clip_high=0.3)
    batch = make_batch(algorithm)
    assert batch.views.scored.sum() < algorithm.prepare(*_prepared(algorithm)).views.scored.sum(), "some are filtered"
    scores = make_scores(batch)
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        where = batch.views.scored[i]
        lp, old, ref = (x[i][where] for x in (scores.logp, batch.behaviour_logp, batch.reference_logp))
        rho, a = torch.exp((lp - old).mean()), batch.advantage[i]
        pg = torch.minimum(rho * a, torch.clamp(rho, 0.8, 1.3) * a)
        k3 = torch.exp(ref - lp) - (ref - lp) - 1
        expected = expected - (pg - 0.04 * k3.mean())
    torch.testing.assert_close(algorithm.loss(batch, scores).total, expected)
    assert algorithm.count(batch) == 4
    by_token = IGPO(entropy_share=0.5, reduction="token")
    assert by_token.count(batch) == batch.views.scored.sum(), "filtered tokens do not count"


def _prepared(algorithm: IGPO) -> tuple[Material, Tensor, int]:
    material = make_material(algorithm)
    return material, material.keys, MASK


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("corruption", "draws"), [({"type": "fully_hidden", "prompt_noise": 0.0}, 1), (ELBO, 3)])
def test_on_policy_the_ratio_is_one_and_the_gradient_reinforce(level, corruption, draws) -> None:  # type: ignore[no-untyped-def]
    algorithm = IGPO(ratio_level=level, corruption=corruption, num_draws=draws, kl_coefficient=0, entropy_share=0.5)
    batch = make_batch(algorithm, moved=False)
    scores = make_scores(batch)
    loss = algorithm.loss(batch, scores)
    weighted = (batch.views.weight * scores.logp).sum(-1).view(4, draws).mean(-1)
    reinforce = -(batch.advantage * weighted / batch.sequences.scored.sum(-1)).sum()
    torch.testing.assert_close(
        torch.autograd.grad(loss.total, scores.logp)[0], torch.autograd.grad(reinforce, scores.logp)[0]
    )
    assert loss.metrics["policy/ratio"].value == 1.0
    assert loss.metrics["policy/clipped"].value == 0.0


def test_behaviour_scores_and_entropies_come_from_one_pass() -> None:
    algorithm, denoiser = IGPO(entropy_share=0.5), SmallDenoiser(seed=1)
    material = make_material(algorithm)
    batch = algorithm.prepare(material, material.keys, MASK)
    scores = score_with_entropy(denoiser, batch, 3)
    torch.testing.assert_close(scores.logp, score_all(denoiser, batch, 100).logp)
    for view, place in batch.views.scored.nonzero().tolist():
        where = torch.zeros(1, batch.views.canvas.shape[1], dtype=torch.bool)
        where[0, place] = True
        attend = batch.sequences.attend[batch.views.row[view]][None]
        p = denoiser.logits_at(batch.views.canvas[view][None], where, attend)[0].detach().softmax(-1)
        assert float(scores.entropy[view, place]) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-12)


@pytest.mark.parametrize("right", range(9))
def test_a_group_gives_rho_one_minus_rho_times_the_difference_of_mean_gradients(right: int) -> None:
    """Section 3 of the paper: rewards 0 and 1, a share rho of 8 correct; most at 1/2, nothing at 0 and 1."""
    denoiser = SmallDenoiser(seed=4)
    rollout = generate(SmallDenoiser(seed=2), [[1, 2]] * 8, gen_length=4, sampler="rl", temperature=2.0)
    reward = (torch.arange(8) < right).double()
    advantage = EVERYTHING.advantages(reward[None])[0]
    assert float(advantage.sum()) == pytest.approx(0.0, abs=1e-15)
    assert torch.equal(advantage, torch.zeros(8, dtype=torch.float64)) == (right in (0, 8))
    material = Material(rollout.sequences(), rollout.keys, advantage, rollout)
    batch = EVERYTHING.prepare(material, rollout.keys, MASK)
    parameters = list(denoiser.parameters())
    loss = EVERYTHING.loss(batch, score_group(denoiser, batch, torch.arange(8))).total / EVERYTHING.count(batch)
    found = torch.autograd.grad(-loss, parameters)
    mean = score_group(denoiser, batch, torch.arange(8)).logp.sum(1) / batch.sequences.scored.sum(1)
    rho = right / 8
    difference = sum(mean[:right]) / max(right, 1) - sum(mean[right:]) / max(8 - right, 1)
    expected = torch.autograd.grad(rho * (1 - rho) * difference, parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"entropy_share": 0.0}, "greater than 0"),
        ({"entropy_share": 1.1}, "less than or equal to 1"),
        ({"hints": {"min_chunk": 4, "max_chunk": 3}}, "min_chunk is 4 and max_chunk 3"),
        ({"hints": {"min_share": 0.4, "max_share": 0.3}}, "min_share is 0.4 and max_share 0.3"),
        ({"hints": {"answer_pattern": "(a"}}, "expected a regular expression"),
        ({"hints": {"answer_pattern": "a"}}, "has no group"),
        ({"num_draws": 2}, "fully hidden views without prompt noise are all the same"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValidationError, match=message):
        IGPO(**settings)


def test_the_correct_channel_is_named_and_at_least_one_completion_can_be_replaced() -> None:
    assert HintSettings().correct_index(["a:b"]) == 0
    assert HintSettings(correct_reward="c:d").correct_index(["a:b", "c:d"]) == 1
    for settings, functions in (({}, ["a:b", "c:d"]), ({"correct_reward": "x"}, ["a:b"])):
        with pytest.raises(ValueError, match=r"correct_reward is .*; expected one of a:b"):
            HintSettings(**settings).correct_index(functions)
    assert [HintSettings().most_replaced(size) for size in (2, 3, 8)] == [1, 1, 4]
    with pytest.raises(ValueError, match=r"replaced_share is 0.1 of 8 generations, less than one completion"):
        HintSettings(replaced_share=0.1).most_replaced(8)
