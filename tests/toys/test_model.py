"""The tiny model: a function of its seed alone."""

from __future__ import annotations

from pathlib import Path

import torch

from dllm_rl.models import DiffusionModel, load_model
from dllm_rl.toys.model import tiny_llada, write_tiny_llada
from dllm_rl.toys.tokenizer import character_tokenizer


def weights(model: DiffusionModel) -> dict[str, torch.Tensor]:
    return model.network.state_dict()


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    first = weights(tiny_llada(seed=1))
    torch.rand(5)
    state = torch.get_rng_state()
    second = weights(tiny_llada(seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], weights(tiny_llada(seed=2))["lm_head.weight"])


def test_sizes_are_those_asked_for() -> None:
    tokenizer = character_tokenizer("0123456789+=")
    model = tiny_llada(hidden=32, layers=3, heads=2, kv_heads=1, mlp=48, max_positions=40, tokenizer=tokenizer)
    assert model.max_positions == 40 and len(model.network.model.layers) == 3
    assert model.network.lm_head.weight.shape == (18, 32)
    assert model.network.model.layers[0].self_attn.k_proj.weight.shape == (16, 32)
    assert model.spec.mask_id == tokenizer.mask_token_id and model.spec.eos_ids == (tokenizer.eos_token_id,)


def test_a_fresh_model_is_nearly_uniform() -> None:
    ids = torch.arange(20)[None]
    with torch.no_grad():
        log_probs = tiny_llada().logits(ids).log_softmax(-1)
    assert (log_probs.exp().mean() - 1 / 102).abs() < 1e-6
    assert log_probs.std() < 0.5


def test_rotary_angles_are_real(tmp_path: Path) -> None:
    """Position matters: they are no leftovers of an empty construction."""
    model = load_model(write_tiny_llada(tmp_path / "m"))
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        near, far = model.logits(ids), model.logits(ids, positions=torch.tensor([[0, 5, 9, 30]]))
        same = model.logits(ids, positions=torch.arange(7, 11)[None])
    assert not torch.allclose(near, far)
    torch.testing.assert_close(near, same, atol=1e-4, rtol=1e-4)
