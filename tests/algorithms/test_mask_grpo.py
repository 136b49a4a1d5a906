"""MaskGRPO against its formulas, and what its released code gets wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dllm_rl.algorithms import MaskGRPO, Scores
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.rng import fold, sample_keys
from tests.algorithms.cases import MASK, make_batch, make_material, make_scores
from tests.e2e import runs

WAY = {"clip_low": 0.2, "clip_high": 0.3}


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_the_loss_of_token_ratios_is_the_masked_mean(reduction: str) -> None:
    algorithm = MaskGRPO(reduction=reduction, kl_coefficient=0.04, **WAY)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    expected, tokens = torch.zeros((), dtype=torch.float64), 0
    for i in range(4):
        where = batch.views.scored[i]
        lp, old, ref = (x[i][where] for x in (scores.logp, batch.behaviour_logp, batch.reference_logp))
        rho, a = torch.exp(lp - old), batch.advantage[i]
        pg = torch.minimum(rho * a, torch.clamp(rho, 0.8, 1.3) * a)
        k3 = torch.exp(ref - lp) - (ref - lp) - 1
        total = (pg - 0.04 * k3).sum()
        expected = expected - (total / where.sum() if reduction == "sequence" else total)
        tokens += int(where.sum())
    torch.testing.assert_close(algorithm.loss(batch, scores).total, expected)
    assert algorithm.count(batch) == (4 if reduction == "sequence" else tokens)


def test_a_completions_ratio_is_the_geometric_mean_of_its_hidden_tokens() -> None:
    algorithm = MaskGRPO(ratio_level="sequence", kl_coefficient=0, **WAY)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        where = batch.views.scored[i]
        rho = torch.exp((scores.logp[i][where] - batch.behaviour_logp[i][where]).mean())
        a = batch.advantage[i]
        expected = expected - torch.minimum(rho * a, torch.clamp(rho, 0.8, 1.3) * a)
    loss = algorithm.loss(batch, scores).total
    torch.testing.assert_close(loss, expected)
    (found,), (wanted,) = (torch.autograd.grad(x, scores.logp) for x in (loss, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_on_policy_ratios_are_one_and_the_gradient_is_reinforce(level: str, reduction: str) -> None:
    algorithm = MaskGRPO(ratio_level=level, reduction=reduction, kl_coefficient=0)
    batch = make_batch(algorithm, moved=False)
    scores = make_scores(batch)
    loss = algorithm.loss(batch, scores)
    scored = batch.views.scored
    share = 1 / scored.sum(1, keepdim=True) if reduction == "sequence" else torch.ones(4, 1)
    (gradient,) = torch.autograd.grad(loss.total, scores.logp)
    torch.testing.assert_close(gradient, -(batch.advantage[:, None] * share * scored).double())
    assert loss.metrics["policy/ratio"].value == 1.0


def test_each_of_the_mu_updates_hides_its_own_share() -> None:
    """t_j = gamma + (1 - gamma) j / mu, j from 1; with accumulation 2 the released code sees every second one."""
    algorithm = MaskGRPO(updates_per_rollout=4, least_hidden=0.6)
    assert [algorithm.iteration_index(n, micro, 2) for n in range(4) for micro in range(2)] == [0, 0, 1, 1, 2, 2, 3, 3]
    rows, length = 400, 60
    material = make_material(algorithm)
    sequences = sequences_from_ids([[1]] * rows, [[2] * length] * rows, pad_id=0)
    keys = sample_keys(0, torch.arange(rows))
    hidden = []
    for iteration in range(4):
        many = replace(material, sequences=sequences, keys=keys, iteration=iteration)
        views = algorithm.prepare(many, fold(keys, "views", iteration), MASK).views
        hidden.append(float(views.scored.sum()) / (rows * length))
    # 24,000 tokens: a standard error below 0.0032
    assert hidden == pytest.approx([0.7, 0.8, 0.9, 1.0], abs=0.01)
    assert hidden[3] == 1.0


def test_what_is_visible_neither_counts_nor_learns() -> None:
    algorithm = MaskGRPO(updates_per_rollout=8)
    batch = make_batch(algorithm)
    visible = batch.sequences.scored & ~batch.views.scored
    assert visible.any()
    assert torch.equal(batch.views.canvas[visible], batch.sequences.tokens[visible])
    scores = make_scores(batch)
    changed = Scores((scores.logp.detach() + visible * 5.0).requires_grad_(), scores.view)
    assert torch.equal(algorithm.loss(batch, changed).total, algorithm.loss(batch, scores).total)
    (gradient,) = torch.autograd.grad(algorithm.loss(batch, scores).total, scores.logp)
    assert (gradient[visible] == 0).all()


@pytest.mark.slow
def test_it_learns_to_add(tmp_path: Path) -> None:
    """The quickstart's task, through the real command line: six rollouts, four updates from each."""
    way = "{type: mask_grpo, clip_low: 0.2, clip_high: 0.2, kl_coefficient: 0.0, updates_per_rollout: 4}"
    changes = ["train.max_steps=24", 'train.save_strategy="no"', "eval.every=0", "eval.limit=500"]
    recipe, output = runs.ROOT / "recipes/quickstart.yaml", tmp_path / "run"
    done = runs.launch(recipe, f"algorithm={way}", *changes, f"output={output}")
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = (line["eval/arithmetic/accuracy"] for line in runs.metrics(output) if "eval/arithmetic/n" in line)
    assert before < 0.3 and after > 0.6
