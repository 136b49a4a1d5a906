"""A canvas being denoised as lines of a terminal: states in, styled text out. Nothing here writes or reads a clock."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import exp, isnan

import torch
from jaxtyping import Bool, Float64, Int64
from rich.cells import cell_len
from rich.color import Color
from rich.style import Style
from rich.text import Text
from torch import Tensor

from dllm_rl.rollouts.ramp import css, ink, ramp


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Signs for what has no letter of its own, each one cell wide."""

    mask: str = "·"
    """Not yet written."""
    reopened: str = "○"
    """Written once and hidden again."""
    end: str = "∎"
    """An end of sequence, which fills the rest of many canvases."""
    newline: str = "↵"
    tab: str = "⇥"
    swatch: str = "▆"
    more: str = "…"
    dot: str = "·"


UNICODE = Glyphs()
ASCII = Glyphs(mask="_", reopened="o", end="$", newline="/", tab=">", swatch="#", more=">", dot="|")
"""For terminals that do not speak UTF-8."""

DIM = Style(dim=True)
FRESH = Style(underline=True)


def visible(text: str, glyphs: Glyphs = UNICODE, keep: str = "") -> str:
    """Text without anything that moves the cursor or reorders letters: such characters become signs or code points.

    Args:
        keep: characters that stay as they are.
    """
    signs = {"\n": glyphs.newline, "\t": glyphs.tab}
    return "".join(
        letter if letter in keep else signs.get(letter) or (f"<{ord(letter):02X}>" if _unseen(letter) else letter)
        for letter in text
    )


def _unseen(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


@dataclass(frozen=True, slots=True)
class Frame:
    """B completions at one moment of their denoising."""

    step: int
    """Forwards done."""
    tokens: Int64[Tensor, "B L"]
    hidden: Bool[Tensor, "B L"]
    logp: Float64[Tensor, "B L"]
    """Log-probability each token was written with, nats; NaN where hidden or where nothing drew the token."""
    fresh: Bool[Tensor, "B L"]
    """Written or replaced by the last forward."""
    seen: Bool[Tensor, "B L"]
    """Written at some time, though perhaps hidden again."""
    drawn: Bool[Tensor, "B L"]
    """Written by a draw, though perhaps edited since; not given, not filled in after the end."""
    forwards: int = 0
    """Forwards of all rows together."""
    remasked: int = 0
    edited: int = 0

    @staticmethod
    def start(tokens: Int64[Tensor, "B L"], hidden: Bool[Tensor, "B L"], logp: Float64[Tensor, "B L"]) -> Frame:
        """Before the first forward."""
        nothing = torch.zeros_like(hidden)
        return Frame(0, tokens, hidden, logp, fresh=nothing, seen=~hidden, drawn=nothing)

    def next(
        self,
        step: int,
        tokens: Int64[Tensor, "B L"],
        hidden: Bool[Tensor, "B L"],
        logp: Float64[Tensor, "B L"],
        forwards: int,
    ) -> Frame:
        """After more forwards: `step` in all, `forwards` over all rows."""
        edited = ~self.hidden & ~hidden & (tokens != self.tokens)
        return Frame(
            step,
            tokens,
            hidden,
            logp,
            fresh=(self.hidden & ~hidden) | edited,
            seen=self.seen | ~hidden,
            drawn=(self.drawn | (self.hidden & ~logp.isnan())) & ~hidden,
            forwards=forwards,
            remasked=self.remasked + int((~self.hidden & hidden).sum()),
            edited=self.edited + int(edited.sum()),
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """A position of the canvas as it is shown, or a part of one that is too wide for a line."""

    text: str
    style: Style
    fresh: bool = False
    ends_line: bool = False

    @property
    def width(self) -> int:
        return cell_len(self.text)


@dataclass(frozen=True)
class View:
    """How frames are shown.

    Args:
        text: what a token id stands for.
        eos_ids: shown as one sign instead of their text.
        prompts: of the rows, as text.
        numbers: of the rows, as they are to be called.
    """

    text: Callable[[int], str]
    eos_ids: Collection[int]
    prompts: Sequence[str]
    numbers: Sequence[int]
    glyphs: Glyphs = UNICODE
    _known: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def lines(self, frame: Frame, width: int, height: int | None, elapsed: float) -> list[Text]:
        """The frame in lines of at most `width` cells: one row as running text, several as one line each.

        Args:
            height: lines there are; what does not fit is left out around the latest writes. None: as many as it takes.
            elapsed: seconds.
        """
        room = None if height is None else max(height - 2, 1)
        body = self._running(frame, width, room) if len(self.prompts) == 1 else self._listed(frame, width, room)
        head = Text(self._one_line(self.prompts[0]), DIM) if len(self.prompts) == 1 else Text("")
        head.truncate(width, overflow="ellipsis" if self.glyphs.more == "…" else "crop")
        status = self.status(frame, width, elapsed)
        every = [head, *body, status] if head.cell_len else [*body, status]
        return every if height is None else every[-height:]

    def status(self, frame: Frame, width: int, elapsed: float) -> Text:
        """What happened so far, as many facts as `width` holds, the most important first."""
        written, total = int((~frame.hidden).sum()), frame.hidden.numel()
        rate = int(frame.drawn.sum()) / frame.forwards if frame.forwards else 0.0
        facts = [
            f"step {frame.step}",
            f"{written}/{total} tokens",
            f"{rate:.2f} tokens/forward",
            f"{elapsed:.1f} s",
            f"{frame.forwards} forwards",
        ]
        if len(self.prompts) > 1:
            facts.insert(1, f"{int((~frame.hidden.any(dim=1)).sum())}/{len(self.prompts)} rows")
        facts += [
            f"{count} {what}" for count, what in ((frame.remasked, "remasked"), (frame.edited, "edited")) if count
        ]
        line = Text()
        for fact in facts:
            more = f" {self.glyphs.dot} {fact}" if line else fact
            if line and line.cell_len + cell_len(more) > width:
                break
            line.append(more, DIM)
        else:
            legend = self._legend()
            if line.cell_len + legend.cell_len <= width:
                line.append_text(legend)
        line.truncate(width)
        return line

    def _legend(self) -> Text:
        legend = Text("   ").append("p 0 ", DIM)
        for fifth in range(6):
            legend.append(self.glyphs.swatch, Style(color=Color.parse(css(ramp(fifth / 5)))))
        return legend.append(" 1", DIM)

    def _running(self, frame: Frame, width: int, room: int | None) -> list[Text]:
        lines = wrapped(self.cells(frame, 0), width)
        if room is None or len(lines) <= room:
            return [_styled(line) for line in lines]
        latest = max((place for place, line in enumerate(lines) if any(cell.fresh for cell in line)), default=0)
        first = min(max(latest - room // 2, 0), len(lines) - room)
        shown = [_styled(line) for line in lines[first : first + room]]
        if first:
            shown[0] = Text(f"{self.glyphs.more} {first + 1} lines above", DIM)
        if (below := len(lines) - first - room) and room > 1:
            shown[-1] = Text(f"{self.glyphs.more} {below + 1} lines below", DIM)
        for line in shown:
            line.truncate(width)
        return shown

    def _listed(self, frame: Frame, width: int, room: int | None) -> list[Text]:
        count = len(self.prompts)
        digits = len(str(max(self.numbers)))
        rows = range(count if room is None or count <= room else room - 1)
        shown = [self._row(frame, row, digits, width) for row in rows]
        if len(rows) < count:
            left = Text(f"{self.glyphs.more} {count - len(rows)} more rows", DIM)
            left.truncate(width)
            shown.append(left)
        return shown

    def _row(self, frame: Frame, row: int, digits: int, width: int) -> Text:
        """The part of a row around its first hidden position: as much before it as leaves a third for what follows."""
        cells = self.cells(frame, row)
        line = Text.assemble((f"{self.numbers[row]:>{digits}} ", DIM))
        room = width - line.cell_len
        hidden = frame.hidden[row].tolist()
        first = hidden.index(True) if True in hidden else len(cells)
        ahead = min(sum(cell.width for cell in cells[first:]), room // 3)
        start, used = first, ahead
        while start and used + cells[start - 1].width <= room:
            start -= 1
            used += cells[start].width
        line.append_text(_styled(cells[start:]))
        line.truncate(width)
        return line

    def cells(self, frame: Frame, row: int) -> list[Cell]:
        """The positions of a row, in order."""
        return [
            self._cell(*position)
            for position in zip(
                frame.tokens[row].tolist(),
                frame.hidden[row].tolist(),
                frame.logp[row].tolist(),
                frame.fresh[row].tolist(),
                frame.seen[row].tolist(),
                strict=True,
            )
        ]

    def _cell(self, token: int, hidden: bool, logp: float, fresh: bool, seen: bool) -> Cell:
        if hidden:
            return Cell(self.glyphs.reopened if seen else self.glyphs.mask, DIM)
        if token in self.eos_ids:
            text, ends_line = self.glyphs.end, False
        else:
            if token not in self._known:
                self._known[token] = self.text(token)
            text, ends_line = self._one_line(self._known[token]), self._known[token].endswith("\n")
        style = Style() if isnan(logp) else probability_style(logp)
        return Cell(text, style + FRESH if fresh else style, fresh, ends_line)

    def _one_line(self, text: str) -> str:
        return visible(text, self.glyphs)


def probability_style(logp: float) -> Style:
    """Colours of a token written with log-probability `logp`."""
    ground = ramp(round(exp(logp), 2))  # rounded, for the logarithm of 1 may come out a little above 0
    return Style(color=Color.parse(css(ink(ground))), bgcolor=Color.parse(css(ground)))


def wrapped(cells: Sequence[Cell], width: int) -> list[list[Cell]]:
    """Cells in lines of at most `width`, broken after ends of lines; a cell wider than a line is split."""
    lines: list[list[Cell]] = [[]]
    used = 0
    for cell in cells:
        for piece in _pieces(cell, width):
            if used + piece.width > width:
                lines.append([])
                used = 0
            lines[-1].append(piece)
            used += piece.width
        if cell.ends_line:
            lines.append([])
            used = 0
    return lines if lines[-1] or len(lines) == 1 else lines[:-1]


def _pieces(cell: Cell, width: int) -> Iterator[Cell]:
    if cell.width <= width:
        yield cell
        return
    piece = ""
    for letter in cell.text:
        fitting = letter if cell_len(letter) <= width else "?"
        if cell_len(piece + fitting) > width:
            yield replace(cell, text=piece)
            piece = ""
        piece += fitting
    yield replace(cell, text=piece)


def _styled(cells: Sequence[Cell]) -> Text:
    """Neighbours of one style share its codes, of which a canvas of masks would otherwise have thousands."""
    runs = groupby(cells, key=lambda cell: cell.style)
    return Text.assemble(*(("".join(cell.text for cell in run), style) for style, run in runs))
