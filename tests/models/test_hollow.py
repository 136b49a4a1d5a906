"""A network built without its weights is the one that was loaded, but for the weights; copies cost what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dllm_rl.errors import CheckpointError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.hollow import Form, frozen_copy, hollow_network
from dllm_rl.models.llada import LLaDAModelLM
from dllm_rl.models.load import load_model
from dllm_rl.models.policy_head import attach_head
from dllm_rl.toys import families
from dllm_rl.toys.model import build, tiny_llada
from dllm_rl.toys.tokenizer import character_tokenizer

TIED: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def tied_llada() -> DiffusionModel:
    return build("LLaDAModelLM", {**TIED, "weight_tying": True}, character_tokenizer(), 0)


def planned_llada() -> DiffusionModel:
    """Whose config.json says that it has a head."""
    model = tiny_llada()
    attach_head(model.network, {"type": "planner"})
    return model


MAKERS: list[Callable[..., DiffusionModel]] = [
    tiny_llada,
    tied_llada,
    planned_llada,
    families.tiny_dream,
    families.tiny_llada_moe,
    families.tiny_llada2,
    families.tiny_sdar,
    families.tiny_sdar_moe,
]
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "auto": {"dtype": "auto"},
    "lora": {"dtype": "bfloat16", "lora": {"r": 2}},
    "planner": {"dtype": "bfloat16", "head": {"type": "planner"}},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_filled_with_the_weights_it_is_the_loaded_one(
    make: Callable[..., DiffusionModel], way: str, tmp_path: Path
) -> None:
    model = make()
    model.network.bfloat16() if way == "auto" else None
    model.save(tmp_path / "model")
    loaded, hollow = (load_model(tmp_path / "model", **WAYS[way], reads=reads) for reads in (True, False))
    Form.of(loaded.network).give_to(hollow.network)
    for whole, empty in zip(loaded.network.named_parameters(), hollow.network.named_parameters(), strict=True):
        assert whole[0] == empty[0]
        assert (whole[1].shape, whole[1].dtype) == (empty[1].shape, empty[1].dtype)
        assert whole[1].requires_grad == empty[1].requires_grad
        with torch.no_grad():
            empty[1].copy_(whole[1])
    tokens = torch.tensor([[40, 41, 42, 43]])
    torch.testing.assert_close(hollow.logits(tokens), loaded.logits(tokens), rtol=0, atol=0)
    assert hollow.spec == loaded.spec and hollow.network.training == loaded.network.training


def test_weights_are_not_read(tmp_path: Path) -> None:
    tiny_llada().save(tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    assert load_model(tmp_path / "model", reads=False).max_positions == 512
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(tmp_path / "model")


def test_another_network_is_refused() -> None:
    form = Form.of(tiny_llada(layers=2).network)
    for other in (tiny_llada(layers=3), tiny_llada(hidden=32), families.tiny_sdar()):
        with pytest.raises(CheckpointError, match=r"made different networks: \[.*expected the same config.json"):
            form.give_to(other.network)


def resident() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_it_and_copies_of_it_are_not_in_memory() -> None:
    config = tiny_llada(hidden=16, mlp=16).network.config
    config.update({"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "head_dim": 256})
    before = resident()
    network = hollow_network(LLaDAModelLM, config, torch.float32)
    twin = frozen_copy(network, torch.empty_like)
    size = sum(4 * weight.numel() for weight in network.parameters())
    assert size > 4e8 and sum(weight.numel() for weight in twin.parameters()) * 4 == size
    assert resident() - before < 0.1 * size


def test_a_frozen_copy_has_weights_of_its_own_unless_it_is_given_others() -> None:
    network = tied_llada().network
    own, shared = frozen_copy(network, None), frozen_copy(network, lambda weight: weight)
    for weight, copied, same in zip(network.parameters(), own.parameters(), shared.parameters(), strict=True):
        assert torch.equal(weight, copied) and weight.data_ptr() != copied.data_ptr()
        assert weight is not same and weight.data_ptr() == same.data_ptr()
        assert weight.requires_grad and not copied.requires_grad and not same.requires_grad
    for twin in (own, shared):
        tensors = twin.state_dict(keep_vars=True)
        assert tensors["lm_head.weight"] is tensors["model.embed_tokens.weight"]
        assert not twin.training
