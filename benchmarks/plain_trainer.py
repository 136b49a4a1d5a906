"""Updates as the published trainers make them, written plainly: what benchmarks compare with. Not part of the library.

Logits of every position and every token of the vocabulary, and one graph over all views of an update. Ratios, clips and
divergences are the objectives' definitions, written out. Each loss is that of the library's algorithm under the
settings its docstring names: `benchmarks.cases` asserts it, and tests/benchmarks does.

Sources: what the released code does, not its text. d1 (Zhao et al., https://arxiv.org/abs/2504.12216), LLaDA's
likelihood (Nie et al., https://arxiv.org/abs/2502.09992) under the loss of LLaDA 1.5 (Zhu et al.,
https://arxiv.org/abs/2505.19223), whose own training code was not released, and CJ-GRPO (Yang et al.,
https://arxiv.org/abs/2509.23924).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

CLIP = 0.5
KL_COEFFICIENT = 0.04
BETA = 0.2


def one_step_logp(network: torch.nn.Module, canvas: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities [B, L] of a completion's tokens by d1: logits of the whole canvas, then those of the end."""
    logits = network(canvas).logits[:, -tokens.shape[1] :]
    losses = cross_entropy(logits.reshape(-1, logits.shape[2]), tokens.reshape(-1), reduction="none")
    return -losses.view(tokens.shape)


def diffu_grpo_loss(
    network: torch.nn.Module,
    canvas: Tensor,
    tokens: Tensor,
    counted: Tensor,
    advantage: Tensor,
    old: Tensor,
    reference: Tensor,
) -> Tensor:
    """The loss of DiffuGRPO(reduction="local_token"): a mean over the micro-batch's tokens.

    Args:
        canvas: [B, N], the completion hidden and a part of the prompt too.
        tokens: [B, L], the completions.
        counted: [B, L], tokens up to the first end of sequence.
        advantage: [B].
        old, reference: [B, L], log-probabilities of the rollout's weights and of the reference on the same canvas.
    """
    per_token = clipped_with_divergence(one_step_logp(network, canvas, tokens), old, reference, advantage)
    return (per_token * counted).sum() / counted.sum()


def vrpo_loss(
    network: torch.nn.Module, canvas: Tensor, tokens: Tensor, hidden: Tensor, weight: Tensor, reference: Tensor
) -> Tensor:
    """The loss of VRPO(beta=0.2), a mean over pairs: all views of all texts in one forward and one graph.

    Args:
        canvas: [P, 2, K, N]: K views of the chosen and of the rejected text of each pair.
        tokens, hidden, weight, reference: of the same shape: what was hidden, where, what it weighs, and its
            log-probability under the reference.
    """
    logits = network(canvas.flatten(0, 2)).logits
    where = hidden.flatten(0, 2)
    logp = -cross_entropy(logits[where], tokens[hidden], reduction="none")
    gain = torch.zeros(hidden.shape, device=canvas.device)
    gain = gain.masked_scatter(hidden, weight[hidden].float() * (logp - reference[hidden]))
    elbo = gain.sum(3).mean(2)
    return -logsigmoid(BETA * (elbo[:, 0] - elbo[:, 1])).mean()


def cj_grpo_loss(
    network: torch.nn.Module,
    canvases: Tensor,
    committed: Tensor,
    tokens: Tensor,
    advantage: Tensor,
    old: Tensor,
    reference: Tensor,
    mask_id: int,
) -> Tensor:
    """The loss of CJGRPO() where all completions write equally many tokens a step: a forward a step, all in one graph.

    Args:
        canvases: [S, B, N], what the sampler saw before each step.
        committed: [S, B, L], what it then wrote.
        tokens: [B, L], the completions.
        advantage: [B].
        old, reference: [S, B, L].
        mask_id: never drawn. The released code may draw it; that it is left out costs nothing here.
    """
    steps, chosen = [], torch.stack([tokens, torch.full_like(tokens, mask_id)], dim=2)
    for canvas, written, before, base in zip(canvases, committed, old, reference, strict=True):
        logits = network(canvas).logits[:, -tokens.shape[1] :]
        totals = torch.stack([row.logsumexp(1) for row in logits])  # a row at a time, as TRL does in float32
        drawn, mask = (logits.gather(2, chosen) - totals[:, :, None]).unbind(2)
        logp = drawn - torch.log1p(-mask.exp())
        per_token = clipped_with_divergence(logp, before, base, advantage)
        steps.append((per_token * written).sum() / written.sum())
    return torch.stack(steps).mean()


def clipped_with_divergence(logp: Tensor, old: Tensor, reference: Tensor, advantage: Tensor) -> Tensor:
    """To be minimised, [B, L]: the clipped ratio times the advantage, and k3 from the reference."""
    ratio = (logp - old).exp()
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    gain = torch.min(ratio * advantage[:, None], clipped * advantage[:, None])
    divergence = (reference - logp).exp() - (reference - logp) - 1
    return KL_COEFFICIENT * divergence - gain
