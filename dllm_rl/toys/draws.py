"""What procedural tasks share: numbers drawn from texts, and the checks of their arguments."""

from __future__ import annotations

import hashlib

from dllm_rl.errors import DataError


def number_of(text: str) -> int:
    """A whole number below 2^64 that looks random and depends on the text alone, on every machine and for ever."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def happens(share: float, text: str) -> bool:
    """True for this share of all texts."""
    return number_of(text) < share * 2**64


def check_rows(split: str, start: int, count: int, careless: float) -> None:
    """Refuse arguments from which no rows can be made.

    Raises:
        DataError: an unknown split, or a number out of range.
    """
    if split not in ("train", "test"):
        raise DataError(f"split is {split!r}; expected 'train' or 'test'")
    if start < 0 or count < 0:
        raise DataError(f"start is {start} and count is {count}; expected both to be at least 0")
    if not 0 <= careless <= 1:
        raise DataError(f"careless is {careless}; expected a share from 0 to 1")
