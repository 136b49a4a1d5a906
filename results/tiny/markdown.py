"""What the parts of the page share."""

from __future__ import annotations

from collections.abc import Sequence

from results.tiny.ledger import Point


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(("|" + "|".join(cells) + "|") if cells[0] == "---" else _line(cells) for cells in lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def accuracy(point: Point) -> str:
    """A share with its 95% interval."""
    low, high = point.interval
    return f"{point.accuracy:.3f} ({low:.3f}-{high:.3f})"
