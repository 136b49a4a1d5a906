"""One spelling for characters that look alike: full-width forms, spaces, marks that cannot be seen."""

from __future__ import annotations

_FULL_WIDTH = {0xFF01 + place: chr(0x21 + place) for place in range(94)}
_SPACES = dict.fromkeys((0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000), " ")
_UNSEEN = dict.fromkeys((0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF))
_TABLE = _FULL_WIDTH | _SPACES | _UNSEEN | {0x2212: "-", 0xFE63: "-", 0x2010: "-", 0x2011: "-"}


def plain_characters(text: str) -> str:
    """The text with plain spaces, ASCII for full-width forms and the minus sign, and no joiners or direction marks.

    Direction marks are dropped, not followed: an answer counts in the order in which it is stored.
    """
    return text.translate(_TABLE)
