"""The forward on chosen rows, through a cache of keys and values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from dllm_rl.errors import ModelContractError
from dllm_rl.toys.model import tiny_llada

IDS = torch.arange(24).reshape(2, 12)
BLOCK = 4


def block_causal(length: int) -> Tensor:
    block = torch.arange(length) // BLOCK
    return (block[:, None] >= block)[None, None].expand(2, 1, length, length)


def everything(network: torch.nn.Module) -> Tensor:
    positions = torch.arange(12).expand(2, 12)
    logits = network(input_ids=IDS, attention_mask=block_causal(12), position_ids=positions, rows=torch.arange(24))
    return logits.unflatten(0, (2, 12))


def through_a_cache(network: torch.nn.Module, cache: DynamicCache, start: int, end: int, **more: object) -> Tensor:
    return network(
        input_ids=IDS[:, start:end],
        attention_mask=block_causal(12)[:, :, start:end, :end],
        position_ids=torch.arange(start, end).expand(2, -1),
        past_key_values=cache,
        use_cache=True,
        rows=torch.arange(2 * (end - start)),
        **more,
    )


@torch.no_grad()
def test_blocks_through_a_cache_equal_one_forward() -> None:
    network = tiny_llada(kv_heads=2).network
    cache = DynamicCache(config=network.config)
    parts = [through_a_cache(network, cache, start, start + BLOCK) for start in range(0, 12, BLOCK)]
    found = torch.cat([part.unflatten(0, (2, BLOCK)) for part in parts], 1)
    torch.testing.assert_close(found, everything(network), atol=1e-5, rtol=1e-5)
    assert cache.get_seq_length() == 12


@torch.no_grad()
def test_scores_through_a_cache_equal_one_forward() -> None:
    network = tiny_llada().network
    cache = DynamicCache(config=network.config)
    through_a_cache(network, cache, 0, 8)
    tokens = IDS[:, 8:].flatten()
    scores = through_a_cache(network, cache, 8, 12, tokens=tokens)
    expected = everything(network)[:, 8:].flatten(0, 1).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(scores.logp, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_usual_forward_also_keeps_keys_and_values() -> None:
    network = tiny_llada().network
    assert network(input_ids=IDS, use_cache=True).past_key_values.get_seq_length() == 12
    cache = DynamicCache(config=network.config)
    network(input_ids=IDS, past_key_values=cache)
    assert cache.get_seq_length() == 12


def test_guidance_through_the_same_cache_is_refused() -> None:
    network = tiny_llada().network
    cache = DynamicCache(config=network.config)
    with pytest.raises(ModelContractError, match="two canvases"):
        through_a_cache(network, cache, 0, 4, unconditional_ids=IDS[:, :4])
    assert cache.get_seq_length() == 0
