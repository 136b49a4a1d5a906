"""Counter-based random numbers: the same key gives the same numbers on any rank, in any batch, on any device.

A key is an int64. `fold` derives keys from keys; `uniform` reads numbers from a key. Nothing here has state, so a draw
depends on what it is for (seed, sample, update, purpose) and never on what was drawn before it.
"""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` on int64 copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers that scrambles well."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _word(part: int | str) -> int:
    """A signed 64-bit integer that stands for one part of a path."""
    if isinstance(part, str):
        return int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little", signed=True)
    return ((int(part) + (1 << 63)) % (1 << 64)) - (1 << 63)


def fold(keys: Int64[Tensor, "*batch"], *path: int | str | Int64[Tensor, "*#batch"]) -> Int64[Tensor, "*batch"]:
    """Keys derived from `keys` along `path`; different paths give unrelated keys.

    Args:
        keys: any shape.
        path: integers, names of purposes, or tensors that broadcast against `keys`.
    """
    for part in path:
        word = part if isinstance(part, Tensor) else torch.tensor(_word(part), dtype=torch.int64, device=keys.device)
        keys = _mix(keys * _MIX_1 + _mix(word + _GOLDEN) + _GOLDEN)
    return keys


def sample_keys(seed: int, sample_ids: Int64[Tensor, "*batch"]) -> Int64[Tensor, "*batch"]:
    """One key per sample, from a run's seed and the samples' ids."""
    root = torch.tensor(_word(seed), dtype=torch.int64, device=sample_ids.device)
    return fold(fold(root, "sample").expand_as(sample_ids), sample_ids)


def uniform(keys: Int64[Tensor, "*batch"], size: int) -> Float64[Tensor, "*batch {size}"]:
    """`size` numbers per key, uniform on the open interval (0, 1).

    They are odd multiples of 2^-53, which a double holds exactly: never 0, never rounded up to 1, and 1 - u is exact.
    Number i of a key does not depend on `size`.
    """
    counter = torch.arange(1, size + 1, dtype=torch.int64, device=keys.device)
    bits = _mix(_mix(keys[..., None] + counter * _GOLDEN))
    return (_shift_right(bits, 11) | 1).to(torch.float64) * 2.0**-53
