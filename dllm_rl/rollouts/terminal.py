"""Drawing a view in place, on a terminal that may be resized while it is watched."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.text import Text

from dllm_rl.rollouts.view import ASCII, UNICODE, Frame, Glyphs, View

if TYPE_CHECKING:
    from dllm_rl.samplers.canvas import Canvas

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
CLEAR_LINE, CLEAR_BELOW = "\x1b[K", "\x1b[J"


def draws_in_place(stream: TextIO) -> bool:
    """True if `stream` is a terminal on which the cursor can be moved."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def console_of(stream: TextIO) -> Console:
    """A console that writes to `stream` and leaves text as it is. NO_COLOR and the terminal decide about colours."""
    return Console(file=stream, highlight=False, markup=False, emoji=False, legacy_windows=False)


def glyphs_of(stream: TextIO) -> Glyphs:
    """Signs that the encoding of `stream` has."""
    return UNICODE if (stream.encoding or "ascii").lower().replace("-", "").startswith("utf") else ASCII


class Painter:
    """Replaces lines drawn before by new ones. Hides the cursor while it is open."""

    def __init__(self, stream: TextIO, console: Console | None = None) -> None:
        self.stream = stream
        self.console = console_of(stream) if console is None else console
        self._widths: list[int] = []  # of the lines on the screen

    def __enter__(self) -> Painter:
        self._write(HIDE_CURSOR)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._write(("\n" if self._widths else "") + SHOW_CURSOR)

    def paint(self, lines: Sequence[Text]) -> None:
        """Draw `lines`, each narrower than the terminal, over those drawn last."""
        body = "\n".join(self._escaped(line) + CLEAR_LINE for line in lines)
        self._write(self._back() + body + CLEAR_BELOW)
        self._widths = [line.cell_len for line in lines]

    def erase(self) -> None:
        """Remove what was drawn; what comes next begins in its place."""
        self._write(self._back() + CLEAR_BELOW)
        self._widths = []

    def _back(self) -> str:
        """To the beginning of what was drawn; a terminal made narrower has folded the lines that no longer fit."""
        width = max(self.console.width, 1)
        up = sum(max(-(-line // width), 1) for line in self._widths) - 1
        return "\r" + (f"\x1b[{up}A" if up > 0 else "")

    def _escaped(self, line: Text) -> str:
        with self.console.capture() as captured:
            self.console.print(line, end="", soft_wrap=True)
        return captured.get()

    def _write(self, text: str) -> None:
        encoding = self.stream.encoding or "utf-8"
        self.stream.write(text.encode(encoding, "replace").decode(encoding))
        self.stream.flush()


class Live:
    """Shows the canvases of a rollout as they are written; to be given to an engine as its `watch`.

    Args:
        view: how a batch is shown, given the prompts its rows belong to.
        clock: seconds.
        interval: seconds between two drawings at least, but that the last state is always drawn by `finish`.
    """

    def __init__(
        self,
        painter: Painter,
        view: Callable[[Sequence[int]], View],
        clock: Callable[[], float] = time.monotonic,
        interval: float = 0.03,
    ) -> None:
        self._painter, self._make_view, self._clock, self._interval = painter, view, clock, interval
        self._started = clock()
        self._drawn = float("-inf")
        self._frame: Frame | None = None
        self._view: View | None = None

    def __call__(self, rows: Sequence[int], step: int, canvas: Canvas) -> None:
        """One step was made: `canvas` holds the prompts number `rows`."""
        order = sorted(range(len(rows)), key=lambda place: rows[place])  # a batch may hold its prompts in any
        tokens, hidden, logp = (part.cpu()[order] for part in (canvas.completion, canvas.hidden, canvas.logp))
        if step == 0 or self._frame is None:
            self._view, self._frame = (
                self._make_view([rows[place] for place in order]),
                Frame.start(tokens, hidden, logp),
            )
        else:
            self._frame = self._frame.next(step, tokens, hidden, logp, int(canvas.forwards.sum()))
        if self._clock() - self._drawn >= self._interval:
            self._draw(self._painter.console.height - 1)

    def finish(self, keep: bool) -> None:
        """Draw the last state in full, or with `keep` False leave nothing on the screen."""
        if keep:
            self._draw(None)
        else:
            self._painter.erase()

    def _draw(self, height: int | None) -> None:
        if self._view is None or self._frame is None:
            return
        now = self._clock()
        width = max(self._painter.console.width - 1, 1)  # a full line would leave the cursor beyond its end
        self._painter.paint(self._view.lines(self._frame, width, height, now - self._started))
        self._drawn = now
