from __future__ import annotations

import hashlib

import pytest
import torch

from dllm_rl.rng import fold, sample_keys, uniform

WORD = (1 << 64) - 1
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(x: int) -> int:
    """The output function of SplitMix64 as published (Steele, Lea, Flood 2014; Vigna's splitmix64.c)."""
    x = ((x ^ (x >> 30)) * MIX_1) & WORD
    x = ((x ^ (x >> 27)) * MIX_2) & WORD
    return x ^ (x >> 31)


def fold_word(key: int, word: int) -> int:
    return mix((key * MIX_1 + mix((word + GOLDEN) & WORD) + GOLDEN) & WORD)


def unsigned(x: torch.Tensor) -> int:
    return int(x) & WORD


KEYS = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123456789123456789])


def test_the_mixer_is_splitmix64() -> None:
    # First outputs of splitmix64.c seeded with 1234567, as published with the test vectors of the Rosetta Code task.
    assert [mix(1234567 + i * GOLDEN & WORD) for i in (1, 2, 3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_uniform_matches_a_transcription_in_unbounded_integers() -> None:
    ours = uniform(KEYS, 7)
    for row, key in enumerate(KEYS):
        theirs = [(mix(mix((unsigned(key) + i * GOLDEN) & WORD)) >> 11 | 1) / 2**53 for i in range(1, 8)]
        assert ours[row].tolist() == theirs


@pytest.mark.parametrize("part", [0, 1, -1, 2**63 - 1, -(2**63), 2**64 - 1])
def test_folding_an_integer_matches_a_transcription(part: int) -> None:
    assert [unsigned(k) for k in fold(KEYS, part)] == [fold_word(unsigned(k), part & WORD) for k in KEYS]


def test_folding_a_name_matches_a_transcription() -> None:
    word = int.from_bytes(hashlib.blake2b(b"level", digest_size=8).digest(), "little")
    assert [unsigned(k) for k in fold(KEYS, "level")] == [fold_word(unsigned(k), word) for k in KEYS]


def test_folding_a_path_is_folding_its_parts_in_turn() -> None:
    draws = torch.arange(len(KEYS))
    assert torch.equal(fold(KEYS, "a", 3, draws), fold(fold(fold(KEYS, "a"), 3), draws))
    assert torch.equal(fold(KEYS, 5), fold(KEYS, torch.full_like(KEYS, 5)))


def test_sample_keys_matches_a_transcription() -> None:
    name = int.from_bytes(hashlib.blake2b(b"sample", digest_size=8).digest(), "little")
    root = fold_word(7, name)
    ids = torch.tensor([0, 1, 41, -3])
    assert [unsigned(k) for k in sample_keys(7, ids)] == [fold_word(root, int(i) & WORD) for i in ids]


def test_sample_keys_keep_the_shape_of_the_ids_and_depend_on_each_id_alone() -> None:
    ids = torch.arange(6).view(2, 3)
    assert torch.equal(sample_keys(3, ids)[1], sample_keys(3, ids[1]))
    assert torch.equal(sample_keys(3, ids).flatten().flip(0), sample_keys(3, ids.flatten().flip(0)))


def test_different_paths_give_different_keys() -> None:
    root = torch.tensor(0)
    names = [("a", "b"), ("b", "a"), ("ab",), ("a",), (0,), ("0",)]
    paths = [(a, b) for a in range(-20, 20) for b in range(-20, 20)] + names
    assert len({int(fold(root, *path)) for path in paths}) == len(paths)
    seeds = torch.stack([sample_keys(seed, torch.arange(100)) for seed in range(100)])
    assert seeds.unique().numel() == 100 * 100


def test_a_number_does_not_depend_on_how_many_are_asked_for() -> None:
    assert torch.equal(uniform(KEYS, 100)[:, :3], uniform(KEYS, 3))


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    rows = uniform(KEYS, 9)
    assert torch.equal(uniform(KEYS[2:3], 9)[0], rows[2])
    assert torch.equal(uniform(KEYS.flip(0), 9), rows.flip(0))
    assert torch.equal(uniform(KEYS.view(2, 3), 9), rows.view(2, 3, 9))


def kolmogorov(numbers: torch.Tensor) -> float:
    """sqrt(n) times the largest gap between the empirical distribution and the uniform one; 1% critical value 1.63."""
    ordered = numbers.flatten().sort().values
    n = len(ordered)
    above = torch.arange(1, n + 1, dtype=torch.float64) / n - ordered
    return float(torch.maximum(above, 1.0 / n - above).max() * n**0.5)


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_uniform_within_a_key_across_keys_and_across_folds(seed: int) -> None:
    keys = sample_keys(seed, torch.arange(50_000))
    assert kolmogorov(uniform(keys[:1], 50_000)) < 1.63
    assert kolmogorov(uniform(keys, 1)) < 1.63
    assert kolmogorov(uniform(fold(keys[:1].expand(50_000), "level", torch.arange(50_000)), 1)) < 1.63


def test_neighbouring_numbers_keys_and_folds_are_independent() -> None:
    keys = sample_keys(11, torch.arange(40_001))
    within, across = uniform(keys, 2), uniform(keys, 1)[:, 0]
    folded = uniform(fold(keys, 1), 1)[:, 0]
    pairs = {"counter": within.unbind(1), "key": (across[:-1], across[1:]), "fold": (across[:-1], folded[:-1])}
    for name, (left, right) in pairs.items():
        cell = (left * 8).long() * 8 + (right * 8).long()
        seen, expected = torch.bincount(cell, minlength=64).double(), len(cell) / 64
        chi2 = float(((seen - expected) ** 2 / expected).sum())
        assert chi2 < 103.4, name  # 63 degrees of freedom, upper 0.1%


def test_all_orders_of_four_numbers_are_equally_likely() -> None:
    order = uniform(sample_keys(5, torch.arange(24_000)), 4).argsort(-1)
    seen = torch.bincount((order * torch.tensor([64, 16, 4, 1])).sum(-1), minlength=256)
    seen = seen[seen > 0].double()
    assert len(seen) == 24
    assert float(((seen - 1000) ** 2 / 1000).sum()) < 49.7  # 23 degrees of freedom, upper 0.1%


def test_extreme_bits_are_still_strictly_between_zero_and_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for bits in (0, -1, -(2**63), 2**63 - 1):
        monkeypatch.setattr("dllm_rl.rng._mix", lambda x, bits=bits: torch.full_like(x, bits))
        number = uniform(torch.tensor([0]), 1)
        assert number.dtype == torch.float64
        assert 0.0 < float(number) < 1.0
        assert float(1.0 - number) + float(number) == 1.0
        assert 0.0 < float(1.0 - number) < 1.0


def test_neither_python_nor_torch_global_state_is_read_or_written() -> None:
    torch.manual_seed(0)
    before, first = torch.get_rng_state(), uniform(KEYS, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(uniform(KEYS, 5), first)


@pytest.mark.gpu
def test_an_accelerator_gives_the_same_bits() -> None:
    keys = sample_keys(3, torch.arange(1000))
    there = sample_keys(3, torch.arange(1000, device="cuda"))
    assert torch.equal(there.cpu(), keys)
    assert torch.equal(uniform(fold(there, "hidden", 5), 100).cpu(), uniform(fold(keys, "hidden", 5), 100))
