"""A terminal as far as it is needed: what stands on the screen after a text was written to it."""

from __future__ import annotations

import io
import re

from rich.cells import cell_len

_PART = re.compile(r"\x1b\[([?\d;]*)([a-zA-Z])|(.)", flags=re.DOTALL)


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def shown(written: str) -> list[str]:
    """The lines of a screen that is wide and tall enough for everything; lines end as a terminal driver ends them."""
    lines: list[list[str]] = [[]]
    row = column = 0
    for part in _PART.finditer(written):
        codes, command, letter = part.groups()
        if letter == "\n":
            row, column = row + 1, 0
            lines += [[] for _ in range(row + 1 - len(lines))]
        elif letter == "\r":
            column = 0
        elif letter is not None:
            line = lines[row]
            line += [" "] * (column + cell_len(letter) - len(line))
            line[column : column + cell_len(letter)] = [letter, *[""] * (cell_len(letter) - 1)]
            column += cell_len(letter)
        elif command == "A":
            row -= int(codes)
            assert row >= 0, "above the first line"
        elif command == "K":
            del lines[row][column:]
        elif command == "J":
            del lines[row][column:], lines[row + 1 :]
        else:
            assert (command, codes) in (("h", "?25"), ("l", "?25")) or command == "m", f"unknown sequence {part[0]!r}"
    return ["".join(line) for line in lines]
