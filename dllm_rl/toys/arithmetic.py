"""Addition problems made on demand: endless, exactly reproducible, with a held-out split that shares no problem."""

from __future__ import annotations

from math import isqrt

from dllm_rl.errors import DataError
from dllm_rl.toys.draws import check_rows, happens, number_of

_SPLIT_PARTS = 10  # one unordered pair of operands in ten is held out
_FEISTEL_ROUNDS = 6


def rows(
    split: str, *, seed: int = 0, start: int = 0, count: int = 1000, digits: int = 3, careless: float = 0.0
) -> list[dict[str, str]]:
    """Rows `start` to `start + count - 1` of an endless list of additions.

    A row is `{"prompt": "123+459=", "answer": "0582", "completion": "0582"}`.

    Operands have `digits` digits and sums one more, both with
    leading zeros, so every prompt and every answer of a given `digits` has one length. The pairs of operands are
    divided once and for all, whatever the seed: one unordered pair in ten is "test", and the same sum with its
    operands exchanged is on the same side. Within one pass over a split no unordered pair occurs twice; then the list
    starts a new pass in another order.

    Wrong to use as a test of length generalisation: both splits hold operands of the same length.

    Args:
        split: "train" or "test".
        seed: the order of the rows and of the two operands in each; never the division into splits.
        start: index of the first row, from 0. A row depends on its index, not on where a call started.
        count: how many rows.
        digits: digits per operand, from 1 to 6.
        careless: share of demonstrations (`completion`) that forget every carry, "0572" above; `answer` stays right.
            Which rows these are cannot be told from the prompt.

    Raises:
        DataError: an unknown split, or a number out of range.
    """
    check_rows(split, start, count, careless)
    if not 1 <= digits <= 6:
        raise DataError(f"digits is {digits}; expected 1 to 6 digits per operand")
    return [_row(split, seed, index, digits, careless) for index in range(start, start + count)]


def split_size(split: str, digits: int = 3) -> int:
    """Unordered pairs of operands in a split, the length of one pass over it."""
    operands: int = 10**digits
    pairs = operands * (operands + 1) // 2
    held_out = pairs // _SPLIT_PARTS
    return held_out if split == "test" else pairs - held_out


def _row(split: str, seed: int, index: int, digits: int, careless: float) -> dict[str, str]:
    size = split_size(split, digits)
    turn, place = divmod(index, size)
    offset = split_size("test", digits) if split == "train" else 0
    slot = offset + _permute(place, size, f"order {seed} {turn} {split} {digits}")
    smaller, larger = _pair(_permute(slot, split_size("train", digits) + split_size("test", digits), f"split {digits}"))
    exchanged = number_of(f"exchange {seed} {turn} {digits} {smaller} {larger}") % 2
    left, right = (larger, smaller) if exchanged else (smaller, larger)
    answer = f"{left + right:0{digits + 1}}"
    slips = happens(careless, f"careless {seed} {turn} {digits} {smaller} {larger}")
    return {
        "prompt": f"{left:0{digits}}+{right:0{digits}}=",
        "answer": answer,
        "completion": _without_carries(left, right, digits) if slips else answer,
    }


def _without_carries(left: int, right: int, digits: int) -> str:
    """Each column added by itself, its carry forgotten."""
    columns = zip(f"{left:0{digits}}", f"{right:0{digits}}", strict=True)
    return "0" + "".join(str((int(a) + int(b)) % 10) for a, b in columns)


def _pair(number: int) -> tuple[int, int]:
    """The unordered pair with this number when pairs are listed (0,0), (0,1), (1,1), (0,2), ..."""
    larger = (isqrt(8 * number + 1) - 1) // 2
    return number - larger * (larger + 1) // 2, larger


def _permute(number: int, size: int, key: str) -> int:
    """A keyed bijection of 0..size-1: a Feistel network on an even number of bits, walked until it lands inside."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        left, right = number >> half, number & ((1 << half) - 1)
        for step in range(_FEISTEL_ROUNDS):
            left, right = right, left ^ (number_of(f"{key} {step} {right}") & ((1 << half) - 1))
        number = (left << half) | right
        if number < size:
            return number
