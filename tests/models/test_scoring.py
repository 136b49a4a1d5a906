"""Scores against the dense computation: values, gradients, and what is never held in memory."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.transform import Transform, guide
from dllm_rl.errors import ModelContractError
from dllm_rl.models import DiffusionModel, heads
from dllm_rl.toys.model import tiny_llada

CHUNK = 5
ROOT = Path(__file__).resolve().parents[2]


def make_model() -> DiffusionModel:
    """Small chunks, grouped keys, distributions far from uniform, float64 to tell rounding from mistakes."""
    model = tiny_llada(seed=1, kv_heads=2)
    model.network.double()
    with torch.no_grad():
        model.network.lm_head.weight.mul_(10)
        model.network.model.embed_tokens.weight.mul_(30)
    model.network.lm_head.rows_per_chunk = CHUNK
    return model


@pytest.fixture
def model() -> DiffusionModel:
    return make_model()


def make_batch(model: DiffusionModel) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 90, (3, 12), generator=generator)
    where = torch.rand(3, 12, generator=generator) < 0.6
    where[1] = False  # a row with nothing to score
    canvas = torch.where(where, torch.tensor(model.spec.mask_id), tokens)
    return canvas, tokens, where


@pytest.fixture
def batch(model: DiffusionModel) -> tuple[Tensor, Tensor, Tensor]:
    return make_batch(model)


def dense(model: DiffusionModel, canvas: Tensor, tokens: Tensor, where: Tensor, transform: Transform) -> Tensor:
    logp = transform.log_probs(model.logits(canvas)).gather(2, tokens[..., None])[..., 0]
    return logp.masked_fill(~where, 0.0)


def gradients(model: DiffusionModel, value: Tensor) -> dict[str, Tensor]:
    model.network.zero_grad()
    (value * torch.linspace(-1, 2, value.numel()).reshape(value.shape)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.network.named_parameters()}


def assert_same_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-9, rtol=1e-6, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("transform", [None, Transform(temperature=0.7, forbidden_ids=(101, 99, 3))])
def test_scores_and_gradients_equal_the_dense_computation(
    model: DiffusionModel, batch: tuple[Tensor, Tensor, Tensor], transform: Transform | None
) -> None:
    canvas, tokens, where = batch
    tokens = torch.where(tokens == 3, 4, tokens)
    expected = dense(model, canvas, tokens, where, transform or Transform())
    found = model.token_logp(canvas, tokens, where, transform=transform)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    assert_same_gradients(gradients(model, found), gradients(model, expected))


def test_gradient_checkpointing_changes_nothing(model: DiffusionModel, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    expected = gradients(model, model.token_logp(*batch))
    model.network.activation_checkpointing_enable()
    model.network.train()
    assert_same_gradients(gradients(model, model.token_logp(*batch)), expected)


def test_no_more_than_a_chunk_of_logits_at_once(
    model: DiffusionModel, batch: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every projection to the vocabulary, forward and recomputed backward, has at most a chunk of rows."""
    rows: list[int] = []

    def watched(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.shape[0] == model.config.vocab_size:
            rows.append(hidden.numel() // hidden.shape[-1])
        return linear(hidden, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    total = int(batch[2].sum())
    with torch.autograd.graph.saved_tensors_hooks(kept := Kept(model.config.vocab_size), lambda x: x):
        value = model.score(*batch, entropy=True)
    chunks = -(-total // CHUNK)
    assert len(rows) == chunks and max(rows) <= CHUNK and sum(rows) == total
    assert kept.rows == 0  # no logits wait for the backward pass
    (value.logp.sum() + value.entropy.sum()).backward()
    assert len(rows) == 2 * chunks and max(rows) <= CHUNK


class Kept:
    """Counts rows of vocabulary size among the activations that autograd keeps."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary, self.rows = vocabulary, 0

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.dim() == 2 and tensor.shape[1] == self.vocabulary and not tensor.is_leaf:
            self.rows += tensor.shape[0]
        return tensor


def test_entropy_and_its_gradient(model: DiffusionModel, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    canvas, tokens, where = batch
    transform = Transform(temperature=1.3, forbidden_ids=(0, 101))
    tokens = tokens.clamp(min=1)
    log_probs = transform.log_probs(model.logits(canvas))
    expected = torch.distributions.Categorical(logits=log_probs).probs
    expected = -torch.where(expected > 0, expected * expected.clamp(min=1e-300).log(), 0.0).sum(-1) * where
    found = model.score(canvas, tokens, where, transform=transform, entropy=True).entropy
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    ours = gradients(model, found)
    assert all(gradient.isfinite().all() for gradient in ours.values())
    assert_same_gradients(ours, gradients(model, expected))


def test_guidance_scores_the_guided_distribution(model: DiffusionModel, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    canvas, tokens, where = batch
    prompt = torch.zeros_like(where)
    prompt[:, :3] = True
    where = where & ~prompt
    transform = Transform(temperature=0.9, cfg_scale=1.5, forbidden_ids=(101,))
    hidden = canvas.masked_fill(prompt, model.spec.mask_id)
    logits = guide(model.logits(canvas), model.logits(hidden), 1.5)
    expected = transform.log_probs(logits).gather(2, tokens[..., None])[..., 0].masked_fill(~where, 0.0)
    found = model.score(canvas, tokens, where, transform=transform, prompt=prompt).logp
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert_same_gradients(gradients(model, found), gradients(model, expected))
    with pytest.raises(ModelContractError, match="no prompt"):
        model.score(canvas, tokens, where, transform=transform)


def test_a_forbidden_token_is_an_error_not_minus_infinity(
    model: DiffusionModel, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    canvas, tokens, where = batch
    token = int(tokens[where][0])
    with pytest.raises(ModelContractError, match=f"{token}, are forbidden"):
        model.token_logp(canvas, tokens, where, transform=Transform(forbidden_ids=(token,)))


def test_temperature_zero_has_no_log_probabilities(model: DiffusionModel, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="temperature 0"):
        model.token_logp(*batch, transform=Transform(temperature=0.0))


def test_probabilities_sum_to_one(model: DiffusionModel) -> None:
    size = model.config.vocab_size
    canvas = torch.full((size, 1), model.spec.mask_id)
    everything = torch.arange(size)[:, None]
    logp = model.token_logp(canvas, everything, torch.ones_like(canvas, dtype=torch.bool))
    assert logp.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_nothing_to_score_is_zero_and_still_reaches_every_weight(model: DiffusionModel) -> None:
    """A rank without work must take part in a gradient exchange like the others."""
    ids = torch.zeros(2, 4, dtype=torch.long)
    logp = model.token_logp(ids, ids, torch.zeros(2, 4, dtype=torch.bool))
    assert logp.abs().sum() == 0
    logp.sum().backward()
    assert all(parameter.grad is not None for parameter in model.network.parameters())


def test_left_padding_changes_nothing(model: DiffusionModel, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    canvas, tokens, where = batch
    plain = model.token_logp(canvas, tokens, where)
    pads = torch.randint(0, 90, (3, 4), generator=torch.Generator().manual_seed(1))
    wide = [torch.cat([pads, x.long()], 1) for x in (canvas, tokens)]
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    attend = torch.cat([nothing, torch.ones_like(where)], 1)
    padded = model.token_logp(*wide, torch.cat([nothing, where], 1), attend)
    torch.testing.assert_close(padded[:, 4:], plain, atol=1e-5, rtol=0)
    assert padded[:, :4].abs().sum() == 0


def test_right_padding_changes_nothing(model: DiffusionModel, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    canvas, tokens, where = batch
    attend = torch.arange(12)[None].expand(3, 12) < 9
    short = model.token_logp(canvas[:, :9], tokens[:, :9], where[:, :9])
    padded = model.token_logp(canvas, tokens, where & attend, attend)
    torch.testing.assert_close(padded[:, :9], short, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pads", [0, 3])
def test_shifted_outputs_are_read_one_position_earlier(model: DiffusionModel, pads: int) -> None:
    """Row i is about token i; the first token, with nothing before it, reads its own output, as in Dream's sampler."""
    plain = model.spec
    shifted = copy.copy(model)
    shifted.spec = DiffusionSpec(plain.mask_id, plain.eos_ids, logit_shift=1)
    ids = torch.randint(0, 90, (2, 7), generator=torch.Generator().manual_seed(2))
    attend = torch.ones(2, 7, dtype=torch.bool)
    attend[:, :pads] = False
    with torch.no_grad():
        raw, found = model.logits(ids, attend), shifted.logits(ids, attend)
    torch.testing.assert_close(found[:, pads + 1 :], raw[:, pads:-1])
    torch.testing.assert_close(found[:, pads], raw[:, pads])
    tokens = ids.flip(1)
    logp = shifted.token_logp(ids, tokens, attend, attend)
    expected = found.log_softmax(-1).gather(2, tokens[..., None])[..., 0] * attend
    torch.testing.assert_close(logp, expected, atol=1e-5, rtol=1e-5)


def test_logits_at_are_rows_of_logits(model: DiffusionModel, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    canvas, _, where = batch
    with torch.no_grad():
        torch.testing.assert_close(model.logits_at(canvas, where), model.logits(canvas)[where])


def test_half_precision_weights_give_float32_scores(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    half = tiny_llada(seed=1)
    half.network.bfloat16()
    assert half.logits(batch[0]).dtype == half.token_logp(*batch).dtype == torch.float32


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_does_not_round_logits(autocast: bool) -> None:
    """Logits of magnitude 10 would be multiples of 2^-4 in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    head = heads.TokenHead(64, 500, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(500, 64, generator=generator))
    head = head if autocast else head.bfloat16()
    hidden, tokens = torch.randn(30, 64, generator=generator).bfloat16(), torch.arange(30)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits, scores = head(hidden), head(hidden, tokens)
    exact = (hidden.double() @ head.weight.detach().double().T).log_softmax(-1)
    torch.testing.assert_close(logits.double().log_softmax(-1), exact, atol=2e-5, rtol=0)
    torch.testing.assert_close(scores.logp.double(), exact[torch.arange(30), tokens], atol=2e-5, rtol=0)


def test_a_canvas_too_long_is_refused(model: DiffusionModel) -> None:
    ids = torch.zeros(1, 513, dtype=torch.long)
    with pytest.raises(ModelContractError, match=r"513 positions long .* 512"):
        model.logits(ids)


def test_shapes_must_agree(model: DiffusionModel) -> None:
    ids = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(TypeError, match="attend"):
        model.logits(ids, torch.ones(2, 5, dtype=torch.bool))


@pytest.mark.slow
def test_through_a_data_parallel_wrapper(tmp_path: Path) -> None:
    """Slow: a process of its own, see `wrapped_scores`."""
    command = [sys.executable, "-m", "tests.models.wrapped_scores", str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "the same\n", done.stderr[-3000:]


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    """Slow: a process of its own, see `compiled_scores`."""
    command = [sys.executable, "-m", "tests.models.compiled_scores", str(tmp_path / "saved")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.splitlines()[-1:] == ["the same"], done.stderr[-3000:]


def test_default_chunk_holds_the_largest_vocabulary_in_a_quarter_gigabyte() -> None:
    assert heads.ROWS_PER_CHUNK * 126464 * 4 < 2**28
