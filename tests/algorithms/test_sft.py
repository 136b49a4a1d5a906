"""Supervised fine-tuning against the formula, text by text."""

from __future__ import annotations

import pytest
import torch

from dllm_rl.algorithms import SFT
from tests.algorithms.cases import make_batch, make_scores


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_loss_is_the_negative_elbo_per_token(draws: int, reduction: str) -> None:
    algorithm = SFT(num_draws=draws, reduction=reduction)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    lengths = batch.sequences.scored.sum(-1)
    elbos = []
    for text in range(4):
        views = range(text * draws, (text + 1) * draws)
        elbos.append(sum((batch.views.weight[v] * scores.logp[v]).sum() for v in views) / draws)
    if reduction == "sequence":
        expected = -sum(elbo / length for elbo, length in zip(elbos, lengths, strict=True)) / 4
    else:
        expected = -sum(elbos) / lengths.sum()
    loss = algorithm.loss(batch, scores)
    torch.testing.assert_close(loss.total / algorithm.count(batch), expected)
    torch.testing.assert_close(
        loss.metrics["elbo/nats_per_token"].value.double(), (-sum(elbos) / lengths.sum()).detach()
    )
