"""Who may look at whom: from `attend` to the mask and position ids that a transformers model takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from dllm_rl.errors import ModelContractError


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """An attention pattern by blocks of attended positions, aligned to the first attended one.

    `block_causal`: a block sees itself and the blocks before it. `two_stream`: the canvas is a noisy half followed by
    the clean half of the same length; a noisy block sees itself and the clean blocks before it, a clean block sees the
    clean blocks up to itself, so one forward gives what block-by-block decoding would see.

    Source: Arriola et al., https://arxiv.org/abs/2503.09573, section 3 and appendix B.6.
    """

    kind: Literal["block_causal", "two_stream"]
    block_size: int
    attend: Bool[Tensor, "B N"] | None = None
    """Positions that may be looked at at all; None is everything."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size is {self.block_size}; expected at least 1")


Attend = Bool[Tensor, "B N"] | Bool[Tensor, "B N N"] | AttentionSpec | None


def own_pattern(attend: Attend, block_size: int | None) -> Attend:
    """What a model makes of `attend`: one with a block size is block-causal unless told all pairs or a pattern."""
    if block_size is None or isinstance(attend, AttentionSpec) or (attend is not None and attend.dim() == 3):
        return attend
    return AttentionSpec("block_causal", block_size, attend)


class _Rule:
    """Whether query `q` of row `b` may see key `k`; takes index tensors of any broadcastable shapes."""

    def __init__(self, allowed: Bool[Tensor, "B N N"]) -> None:
        self.allowed = allowed

    def __call__(self, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.allowed[b, q, k]


class _BlockRule:
    """Blocks of the same stream and of the clean stream; with one stream every position is clean."""

    def __init__(self, block: Int64[Tensor, "B N"], clean: Bool[Tensor, " N"], seen: Bool[Tensor, "B N"]) -> None:
        self.block, self.clean, self.seen = block, clean, seen

    def __call__(self, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        query, key = self.block[b, q], self.block[b, k]
        own = (query == key) & (self.clean[q] == self.clean[k])
        return self.seen[b, k] & (own | (self.clean[k] & (key < query)))


def seen_positions(attend: Attend, shape: torch.Size, device: torch.device) -> Bool[Tensor, "B N"]:
    """Positions that are no padding: those that may be looked at, or that look at themselves."""
    if isinstance(attend, AttentionSpec):
        attend = attend.attend
    if attend is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    expected = shape if attend.dim() == 2 else torch.Size((*shape, shape[1]))
    if attend.dtype != torch.bool or attend.shape != expected:
        raise ModelContractError(
            f"attend is {attend.dtype} of shape {tuple(attend.shape)}; for a canvas of shape {tuple(shape)} expected "
            f"bool of shape {tuple(shape)} or {(*shape, shape[1])}"
        )
    return attend if attend.dim() == 2 else attend.diagonal(dim1=1, dim2=2)


def position_ids(attend: Attend, seen: Bool[Tensor, "B N"]) -> Int64[Tensor, "B N"]:
    """Positions counted over attended tokens, so that left padding changes nothing; per half for two streams."""
    halves = 2 if isinstance(attend, AttentionSpec) and attend.kind == "two_stream" else 1
    if seen.shape[1] % halves:
        raise ModelContractError(
            f"a two-stream canvas has {seen.shape[1]} positions; expected a noisy and a clean half"
        )
    if isinstance(attend, Tensor) and attend.dim() == 3:
        return torch.arange(seen.shape[1], device=seen.device).expand_as(seen)
    counts = seen.reshape(len(seen), halves, seen.shape[1] // halves).cumsum(2) - 1
    return counts.clamp(min=0).flatten(1)


def attention_mask(attend: Attend, seen: Bool[Tensor, "B N"], positions: Int64[Tensor, "B N"], network: Any) -> Any:
    """What the network takes as `attention_mask` under its attention implementation."""
    if attend is None or (isinstance(attend, Tensor) and attend.dim() == 2):
        return None if attend is None else seen.long()
    if isinstance(attend, AttentionSpec):
        length = seen.shape[1]
        clean = torch.ones(length, dtype=torch.bool, device=seen.device)
        if attend.kind == "two_stream":
            clean[: length // 2] = False
        rule: _Rule | _BlockRule = _BlockRule(positions // attend.block_size, clean, seen)
    else:
        rule = _Rule(attend)
    return _materialise(rule, seen.shape, seen.device, network)


def _materialise(rule: _Rule | _BlockRule, shape: torch.Size, device: torch.device, network: Any) -> Any:
    rows, length = shape
    implementation = network.config._attn_implementation
    if implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(
            lambda b, h, q, k: rule(b, q, k), B=rows, H=None, Q_LEN=length, KV_LEN=length, device=str(device)
        )
    index = torch.arange(length, device=device)
    allowed = rule(torch.arange(rows, device=device)[:, None, None], index[None, :, None], index[None, None, :])
    return mask_of_pairs(allowed, network)


def refuse_flex_on_cpu(network: Any, device: torch.device) -> None:
    """Check that flex attention is asked for where its kernel can be trusted.

    Torch 2.13's kernel for CPUs reads memory that nothing wrote: at 8 and 24 positions with heads of 16, on a processor
    without AVX-512, its outputs differ from the other implementations' by more than 1, or are NaN.

    Raises:
        ModelContractError: it is asked for on a CPU.
    """
    if network.config._attn_implementation == "flex_attention" and device.type == "cpu":
        raise ModelContractError(
            "attention implementation 'flex_attention' on a CPU, where its kernel gives wrong numbers for some "
            "lengths; load the model with attn_implementation='sdpa' or 'eager', or put it on a GPU"
        )


def mask_of_pairs(allowed: Bool[Tensor, "B Q K"], network: Any) -> Tensor:
    """A mask between queries and keys, shared by all heads, as the attention implementation takes it.

    Raises:
        ModelContractError: for an implementation that takes no mask between pairs as a tensor.
    """
    implementation = network.config._attn_implementation
    if implementation not in ("sdpa", "eager"):
        raise ModelContractError(
            f"attention implementation {implementation!r} takes no mask between positions here; "
            "load the model with attn_implementation='sdpa' or 'eager' ('flex_attention' will do without a cache)"
        )
    if implementation == "sdpa":
        return allowed[:, None]
    blocked = torch.finfo(network.dtype).min
    return torch.zeros_like(allowed[:, None], dtype=network.dtype).masked_fill(~allowed[:, None], blocked)
