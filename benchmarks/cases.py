"""The updates that benchmarks make: a random LLaDA, a micro-batch of each method, and both ways to its gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks import plain_trainer
from dllm_rl.algorithms import CJGRPO, VRPO, Algorithm, Batch, DiffuGRPO
from dllm_rl.algorithms.base import Material
from dllm_rl.diffusion.transform import Transform
from dllm_rl.diffusion.views import Sequences, Views
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.llada import LladaConfig, LLaDAModelLM
from dllm_rl.models.spec import spec_of
from dllm_rl.rng import sample_keys
from dllm_rl.training.backward import GroupContext, backward, score_all, view_groups

VOCABULARY = 126_464


@dataclass(frozen=True)
class Shape:
    """How large an update is."""

    method: str
    sequences: int
    """Completions; for VRPO texts, two a pair."""
    views: int
    """Of each sequence: 1 for diffu-GRPO, draws for VRPO, steps for CJ-GRPO."""
    prompt: int
    completion: int
    vocabulary: int = VOCABULARY
    views_per_forward: int = 8
    hidden: int = 64
    layers: int = 2
    early_ends: bool = False
    """Each completion counts one token less than the one before."""
    shared_draws: bool = False
    """Of diffu-GRPO: all completions answer one prompt, of which one draw hides a part."""

    @property
    def logits_gb(self) -> float:
        """One float32 copy of the logits of all positions of all views."""
        positions = self.sequences * self.views * (self.prompt + self.completion)
        return positions * self.vocabulary * 4 / 1e9


SMALL = {
    "diffu_grpo": Shape("diffu_grpo", 3, 1, 5, 6, vocabulary=50, views_per_forward=2, hidden=16, early_ends=True),
    "vrpo": Shape("vrpo", 4, 3, 5, 6, vocabulary=50, views_per_forward=2, hidden=16),
    "cj_grpo": Shape("cj_grpo", 3, 3, 5, 6, vocabulary=50, views_per_forward=2, hidden=16),
    "diffu_grpo_shared": Shape(
        "diffu_grpo", 3, 1, 5, 6, vocabulary=50, views_per_forward=2, hidden=16, early_ends=True, shared_draws=True
    ),
}


@dataclass(frozen=True)
class Case:
    """One micro-batch, and the plain way to its loss."""

    shape: Shape
    model: DiffusionModel
    algorithm: Algorithm
    batch: Batch
    plain_loss: Callable[[], Tensor]

    def ours(self, group_context: GroupContext = lambda last: nullcontext()) -> float:
        """The library's backward; the mean loss."""
        scale = 1.0 / self.algorithm.count(self.batch)
        losses = backward(
            self.algorithm,
            self.batch,
            self.model,
            self.model,
            groups=view_groups(len(self.batch.views), self.shape.views_per_forward),
            scale=scale,
            group_context=group_context,
            back_propagate=lambda objective: objective.backward(),
        )
        return scale * float(sum(loss.total for loss in losses))

    def plain(self) -> float:
        loss = self.plain_loss()
        loss.backward()
        return float(loss.detach())


def make_model(shape: Shape) -> DiffusionModel:
    """The last id is the mask, the one before it the end of sequence."""
    torch.manual_seed(0)
    config = LladaConfig(
        hidden_size=shape.hidden,
        intermediate_size=2 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
        vocab_size=shape.vocabulary,
        mask_token_id=shape.vocabulary - 1,
        eos_token_id=shape.vocabulary - 2,
        pad_token_id=shape.vocabulary - 2,
        max_position_embeddings=2048,
    )
    network = LLaDAModelLM(config).eval()
    with torch.no_grad():
        network.lm_head.weight.mul_(20)  # a fresh head is uniform
    return DiffusionModel(network, spec_of(config, None))


def make_case(shape: Shape, model: DiffusionModel) -> Case:
    """A micro-batch of random tokens; the policy has moved a little from what wrote them and from the reference."""
    return {"diffu_grpo": _diffu_grpo, "vrpo": _vrpo, "cj_grpo": _cj_grpo}[shape.method](shape, model)


def assert_equal_updates(shape: Shape) -> None:
    """Both ways give one loss and one gradient, to the precision of float32.

    Raises:
        AssertionError: they do not.
    """
    case = make_case(shape, make_model(shape))
    losses, gradients = [], []
    for way in (case.ours, case.plain):
        case.model.network.zero_grad()
        losses.append(way())
        gradients.append({name: weight.grad for name, weight in case.model.network.named_parameters()})
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in gradients[1].values())
    assert largest > 1e-4, "a gradient of nothing tells nothing"
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5 * largest, msg=name)


def _diffu_grpo(shape: Shape, model: DiffusionModel) -> Case:
    algorithm = DiffuGRPO(reduction="local_token")
    sequences = _sequences(shape)
    if shape.early_ends:
        ends = sequences.tokens.shape[1] - torch.arange(shape.sequences)[:, None]
        sequences = replace(sequences, scored=sequences.scored & (torch.arange(sequences.tokens.shape[1]) < ends))
    keys = sample_keys(0, torch.arange(shape.sequences) * (not shape.shared_draws))
    batch = algorithm.prepare(Material(sequences, keys, _advantage(shape)), keys, model.spec.mask_id)
    batch = _moved(model, batch, behaviour=True)
    assert batch.advantage is not None and batch.behaviour_logp is not None and batch.reference_logp is not None
    end = (slice(None), slice(shape.prompt, None))
    inputs = (sequences.tokens[end], sequences.scored[end], batch.advantage)
    known = (batch.behaviour_logp[end], batch.reference_logp[end])
    loss = lambda: plain_trainer.diffu_grpo_loss(model.network, batch.views.canvas, *inputs, *known)  # noqa: E731
    return Case(shape, model, algorithm, batch, loss)


def _vrpo(shape: Shape, model: DiffusionModel) -> Case:
    algorithm = VRPO(num_draws=shape.views)
    keys = sample_keys(0, torch.arange(shape.sequences))
    batch = algorithm.prepare(Material(_sequences(shape), keys), keys, model.spec.mask_id)
    batch = _moved(model, batch, behaviour=False)
    views = batch.views
    assert batch.reference_logp is not None
    inputs = [
        part.unflatten(0, (-1, 2, shape.views))
        for part in (
            views.canvas,
            batch.sequences.tokens[views.row],
            views.scored,
            views.weight,
            batch.reference_logp,
        )
    ]
    return Case(shape, model, algorithm, batch, lambda: plain_trainer.vrpo_loss(model.network, *inputs))


def _cj_grpo(shape: Shape, model: DiffusionModel) -> Case:
    mask_id = model.spec.mask_id
    sequences = _sequences(shape)
    views = _replayed(shape, sequences, mask_id)
    never_drawn = Transform(forbidden_ids=(mask_id,))
    batch = Batch(sequences, views, _advantage(shape), transform=never_drawn)
    batch = _moved(model, batch, behaviour=True)
    assert batch.behaviour_logp is not None and batch.reference_logp is not None and batch.advantage is not None

    def by_step(part: Tensor) -> Tensor:
        return part.unflatten(0, (shape.sequences, shape.views)).transpose(0, 1)

    written, old, reference = (
        by_step(part[:, shape.prompt :]) for part in (views.scored, batch.behaviour_logp, batch.reference_logp)
    )
    inputs = (by_step(views.canvas), written, sequences.tokens[:, shape.prompt :], batch.advantage, old, reference)
    return Case(
        shape, model, CJGRPO(), batch, lambda: plain_trainer.cj_grpo_loss(model.network, *inputs, mask_id=mask_id)
    )


def _sequences(shape: Shape) -> Sequences:
    generator = torch.Generator().manual_seed(1)
    size = shape.sequences, shape.prompt + shape.completion
    tokens = torch.randint(0, shape.vocabulary - 2, size, generator=generator)
    if shape.shared_draws:
        tokens[:, : shape.prompt] = tokens[0, : shape.prompt]
    everywhere = torch.ones(size, dtype=torch.bool)
    completion = everywhere & (torch.arange(size[1]) >= shape.prompt)
    return Sequences(tokens, everywhere, completion, completion)


def _replayed(shape: Shape, sequences: Sequences, mask_id: int) -> Views:
    """Views of rollouts that wrote equally many tokens a step, in a random order."""
    if shape.completion % shape.views:
        raise ValueError(f"{shape.completion} tokens in {shape.views} steps; expected a multiple")
    generator = torch.Generator().manual_seed(2)
    order = torch.rand(shape.sequences, shape.completion, generator=generator).argsort(1).argsort(1)
    step = order // (shape.completion // shape.views)
    written_at = torch.full_like(sequences.tokens, -1).masked_scatter(sequences.completion, step)
    row = torch.arange(shape.sequences).repeat_interleave(shape.views)
    now = torch.arange(shape.views).repeat(shape.sequences)[:, None]
    tokens, written_at = sequences.tokens[row], written_at[row]
    scored = written_at == now
    return Views(tokens.masked_fill(written_at >= now, mask_id), scored, scored.double(), row, tokens)


def _advantage(shape: Shape) -> Tensor:
    advantage = torch.linspace(-1.0, 1.5, shape.sequences)
    return advantage - advantage.mean() + 0.1


def _moved(model: DiffusionModel, batch: Batch, *, behaviour: bool) -> Batch:
    """With scores of other weights: the model's own, off by some tenths of a nat. Some ratios are clipped."""
    generator = torch.Generator().manual_seed(3)
    logp = score_all(model, batch, 1).logp

    def other() -> Tensor:
        return logp + 0.4 * torch.randn(logp.shape, generator=generator) * batch.views.scored

    batch = replace(batch, reference_logp=other())
    return replace(batch, behaviour_logp=other()) if behaviour else batch
