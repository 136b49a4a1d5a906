"""States in, exact strings out; and what is drawn over what."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from dllm_rl.rollouts.terminal import Live, Painter, draws_in_place, glyphs_of
from dllm_rl.rollouts.view import ASCII, DIM, FRESH, Cell, Frame, View, probability_style, visible, wrapped
from dllm_rl.samplers.canvas import Canvas
from tests.rollouts.screens import Screen, shown

NAN, EOS, MASK = math.nan, 98, 99
TEXTS = {0: "one", 1: " two", 2: "three\n", 3: "日本", 4: "\x1b[2J", 5: "[bold]", 6: "a" * 30}
SURE, HALF = 0.0, math.log(0.5)


def state(tokens: list[list[int]], logp: list[list[float]] | None = None):
    """Tokens, hidden, logp of a canvas: MASK is hidden."""
    ids = torch.tensor(tokens)
    hidden = ids == MASK
    known = torch.zeros(ids.shape, dtype=torch.float64) if logp is None else torch.tensor(logp, dtype=torch.float64)
    return ids, hidden, known.masked_fill(hidden, NAN)


def frame_of(*states: list[list[int]], logp: list[list[float]] | None = None) -> Frame:
    """The frame after canvases that followed each other, one forward each."""
    frame = Frame.start(*state(states[0]))
    for step, tokens in enumerate(states[1:], start=1):
        last = logp if step == len(states) - 1 else None
        frame = frame.next(step, *state(tokens, last), forwards=step * len(tokens))
    return frame


def view(rows: int = 1, prompt: str = "prompt", **more) -> View:
    return View(TEXTS.__getitem__, {EOS}, [prompt] * rows, range(rows), **more)


def plain(frame: Frame, width: int = 80, height: int | None = 24, rows: int = 1, **more) -> list[str]:
    return [line.plain for line in view(rows, **more).lines(frame, width, height, 1.25)]


def test_the_screen_of_one_prompt() -> None:
    frame = frame_of([[MASK] * 5], [[0, MASK, MASK, MASK, MASK]], [[0, 1, MASK, MASK, EOS]])
    assert plain(frame) == [
        "prompt",
        "one two··∎",
        "step 2 · 3/5 tokens · 1.50 tokens/forward · 1.2 s · 2 forwards   p 0 ▆▆▆▆▆▆ 1",
    ]


def test_the_screen_of_several_prompts() -> None:
    frame = frame_of([[MASK] * 3] * 2, [[0, MASK, MASK], [1, 1, EOS]])
    assert plain(frame, rows=2) == [
        "0 one··",
        "1  two two∎",
        "step 1 · 1/2 rows · 4/6 tokens · 2.00 tokens/forward · 1.2 s · 2 forwards",
    ]


def test_before_the_first_forward_all_is_masked() -> None:
    assert plain(frame_of([[MASK] * 3]))[1:] == [
        "···",
        "step 0 · 0/3 tokens · 0.00 tokens/forward · 1.2 s · 0 forwards   p 0 ▆▆▆▆▆▆ 1",
    ]


def test_what_was_written_and_hidden_again_shows_and_counts() -> None:
    frame = frame_of([[MASK] * 3], [[0, 0, MASK]], [[MASK, 1, MASK]], [[MASK, 1, 0]])
    cells, status = plain(frame, width=120)[1:]
    assert cells == "○ twoone"
    assert status.startswith("step 3 · 2/3 tokens · 0.67 tokens/forward · 1.2 s · 3 forwards · 1 remasked · 1 edited")


def test_given_tokens_and_the_fill_count_as_tokens_but_not_as_work() -> None:
    frame = frame_of([[0, MASK, MASK]], [[0, 1, EOS]], logp=[[NAN, SURE, NAN]])
    assert plain(frame)[2].startswith("step 1 · 3/3 tokens · 1.00 tokens/forward")
    assert [cell.style.bgcolor is None for cell in view().cells(frame, 0)] == [True, False, True]


def test_an_edited_token_stays_one_that_was_drawn() -> None:
    frame = frame_of([[MASK]], [[0]], [[1]], logp=[[NAN]])
    assert view().cells(frame, 0) == [Cell(" two", FRESH, fresh=True)]
    assert plain(frame)[2].startswith("step 2 · 1/1 tokens · 0.50 tokens/forward")


def test_colours_say_the_probability_and_underlining_what_is_new() -> None:
    frame = frame_of([[MASK] * 3], [[0, MASK, MASK]], [[0, 1, MASK]], logp=[[SURE, HALF, NAN]])
    old, new, masked = view().cells(frame, 0)
    assert old.style == probability_style(SURE) and not old.fresh
    assert new.style.underline and new.style.bgcolor == probability_style(HALF).bgcolor and new.fresh
    assert masked == Cell("·", DIM)
    assert probability_style(1e-12) == probability_style(0.0)  # by rounding


def written_by(color_system: str | None, probability: float, no_color: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system=color_system, width=40, no_color=no_color)
    frame = frame_of([[MASK] * 2], [[0, MASK]], logp=[[math.log(probability), NAN]])
    Painter(stream, console).paint(view().lines(frame, 39, 10, 0.0)[1:2])
    return stream.getvalue()


def test_escape_sequences_of_a_line() -> None:
    # a probability each: rich keeps a style's codes once they are made, and a process has one terminal
    masked = "\x1b[2m·\x1b[0m\x1b[K\x1b[J"
    assert written_by("truecolor", 0.5) == "\r\x1b[4;38;2;0;0;0;48;2;132;154;141mone\x1b[0m" + masked
    assert written_by("256", 0.25) == "\r\x1b[4;38;5;16;48;5;144mone\x1b[0m" + masked
    assert written_by("truecolor", 0.1, no_color=True) == "\r\x1b[4mone\x1b[0m" + masked


def test_nothing_a_token_holds_steers_the_terminal() -> None:
    assert visible("a\n\t\r\x1b\x7f\x9b\u202e\u2028\u200d\ue000b") == "a↵⇥<0D><1B><7F><9B><202E><2028><200D><E000>b"
    assert visible("a\n\t\x1b", keep="\n\t") == "a\n\t<1B>"
    assert visible("é 日本 [bold] ```") == "é 日本 [bold] ```"
    assert plain(frame_of([[MASK] * 2], [[4, 5]]))[1] == "<1B>[2J[bold]"
    assert plain(frame_of([[MASK]]), prompt="a\n\x1b")[0] == "a↵<1B>"


def test_lines_break_after_ends_of_lines_and_at_the_width() -> None:
    cells = [Cell("one", DIM), Cell("three↵", DIM, ends_line=True), Cell("日本", DIM), Cell("x", DIM)]

    def texts(width: int) -> list[list[str]]:
        return [[cell.text for cell in line] for line in wrapped(cells, width)]

    assert texts(80) == [["one", "three↵"], ["日本", "x"]]
    assert texts(5) == [["one"], ["three"], ["↵"], ["日本", "x"]]
    assert texts(3) == [["one"], ["thr"], ["ee↵"], ["日"], ["本", "x"]]
    assert texts(1) == [*([letter] for letter in "onethree↵"), ["?"], ["?"], ["x"]]
    assert wrapped([], 10) == [[]]
    assert [len(line) for line in wrapped(cells[1:2], 80)] == [1]


def test_a_canvas_taller_than_the_terminal_is_shown_around_the_latest_writes() -> None:
    before = [[2] * 20 + [MASK] * 10]
    after = [[2] * 21 + [MASK] * 9]
    lines = plain(frame_of([[MASK] * 30], before, after), height=9)
    assert len(lines) == 9
    assert lines[1:-1] == ["… 16 lines above", *["three↵"] * 5, "·" * 9]
    top = plain(frame_of([[MASK] * 30], [[MASK] + [2] * 29], [[2] * 30]), height=6)
    assert top[1:-1] == ["three↵", "three↵", "three↵", "… 27 lines below"]
    middle = plain(frame_of([[MASK] * 30], [[2] * 9 + [MASK] + [2] * 20], [[2] * 30]), height=7)
    assert middle[1:-1] == ["… 8 lines above", *["three↵"] * 3, "… 19 lines below"]
    assert plain(frame_of([[2] * 30]), height=None)[1:-1] == ["three↵"] * 30


def test_more_rows_than_lines_are_counted() -> None:
    lines = plain(frame_of([[MASK]] * 12), height=6, rows=12)
    assert lines[0] == " 0 ·" and lines[3] == "… 9 more rows" and len(lines) == 5


def test_a_row_too_long_for_its_line_shows_where_it_is_being_written() -> None:
    frame = frame_of([[MASK] * 60] * 2, [[1] * 20 + [MASK] * 40] * 2)
    assert plain(frame, width=32, rows=2)[0] == "0 " + " two" * 5 + "·" * 10


@pytest.mark.parametrize("rows", [1, 2])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_line_is_too_wide_and_no_screen_too_tall(rows: int, data: st.DataObject) -> None:
    canvas = st.lists(st.sampled_from([*TEXTS, EOS, MASK]), min_size=12, max_size=12)
    frame = frame_of(*(data.draw(st.lists(canvas, min_size=rows, max_size=rows)) for _ in range(3)))
    width, height = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 12))
    lines = view(rows).lines(frame, width, height, 12.3)
    assert len(lines) <= height
    assert all(line.cell_len <= width and cell_len(line.plain) == line.cell_len for line in lines)


def test_signs_fall_back_where_the_terminal_has_no_unicode() -> None:
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert glyphs_of(latin) is ASCII
    assert glyphs_of(io.TextIOWrapper(io.BytesIO(), encoding="UTF-8")).mask == "·"
    frame = frame_of([[MASK] * 3], [[3, MASK, MASK]])
    Painter(latin, Console(file=latin, width=40)).paint(view(glyphs=ASCII).lines(frame, 39, 10, 0.0)[1:2])
    assert latin.buffer.getvalue() == b"\r??__\x1b[K\x1b[J"
    assert all(len(part) == 1 and part.isascii() for part in (ASCII.mask, ASCII.end, ASCII.newline, ASCII.more))


def test_only_a_terminal_that_moves_its_cursor_is_drawn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert draws_in_place(Screen()) and not draws_in_place(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not draws_in_place(Screen())


def painter(width: int = 20) -> tuple[Painter, Screen]:
    screen = Screen()
    return Painter(screen, Console(file=screen, color_system=None, width=width, height=10)), screen


def test_a_frame_is_drawn_over_the_one_before() -> None:
    brush, screen = painter()
    one, two = (view().lines(frame_of([[MASK] * n]), 19, 10, 0.0)[:2] for n in (2, 3))
    with brush:
        brush.paint(one)
        brush.paint(two)
    assert screen.getvalue() == (
        "\x1b[?25l"
        "\rprompt\x1b[K\n··\x1b[K\x1b[J"
        "\r\x1b[1Aprompt\x1b[K\n···\x1b[K\x1b[J"
        "\n\x1b[?25h"
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    canvases=st.lists(st.lists(st.sampled_from([*TEXTS, EOS, MASK]), min_size=12, max_size=12), min_size=1, max_size=5)
)
def test_only_the_last_frame_stands_on_the_screen(canvases: list[list[int]]) -> None:
    brush, screen = painter(width=20)
    screen.write("before\n")
    for count in range(1, len(canvases) + 1):
        lines = view().lines(frame_of(*([canvas] for canvas in canvases[:count])), 19, 30, 0.0)
        brush.paint(lines)
    assert shown(screen.getvalue()) == ["before", *(line.plain for line in lines)]
    brush.erase()
    assert shown(screen.getvalue()) == ["before", ""]


def test_a_terminal_made_narrower_has_folded_what_was_drawn() -> None:
    brush, screen = painter(width=20)
    lines = view(prompt="x" * 15).lines(frame_of([[MASK] * 12]), 19, 10, 0.0)[:2]
    brush.paint(lines)
    brush.console.width = 10  # 15 and 12 cells now take two lines each
    start = len(screen.getvalue())
    brush.erase()
    assert screen.getvalue()[start:] == "\r\x1b[3A\x1b[J"
    start = len(screen.getvalue())
    brush.erase()
    assert screen.getvalue()[start:] == "\r\x1b[J"  # nothing left to go back over


def test_the_cursor_comes_back_when_something_fails() -> None:
    brush, screen = painter()
    with pytest.raises(KeyboardInterrupt), brush:
        raise KeyboardInterrupt
    assert screen.getvalue() == "\x1b[?25l\x1b[?25h"


def canvas_of(tokens: list[list[int]], forwards: int) -> Canvas:
    ids, hidden, logp = state(tokens)
    rows = len(tokens)
    zeros = torch.zeros(rows, dtype=torch.int64)
    return Canvas(
        tokens=torch.cat([zeros[:, None], ids], dim=1),
        attend=None,
        hidden=hidden,
        editable=torch.ones_like(hidden),
        block_of=torch.zeros_like(ids),
        opened=torch.ones_like(hidden),
        keys=zeros,
        forwards=zeros + forwards,
        block=zeros,
        turn=zeros,
        opening=zeros,
        finished=zeros.bool(),
        confidence=logp,
        logp=logp,
    )


def test_a_live_view_draws_seldom_but_misses_nothing() -> None:
    ticks = iter([0.0, 0.0, 0.0, 0.01, 0.02, 0.5, 0.5, 0.6])
    brush, screen = painter(width=80)
    live = Live(brush, lambda rows: view(len(rows)), clock=lambda: next(ticks), interval=0.1)
    live([0], 0, canvas_of([[MASK, MASK]], 0))
    live([0], 1, canvas_of([[0, MASK]], 1))  # too early to be drawn
    live([0], 2, canvas_of([[MASK, MASK]], 2))  # so is this, but it counts
    live([0], 3, canvas_of([[1, MASK]], 3))
    live.finish(keep=True)
    drawn = screen.getvalue().split("\x1b[J")
    assert len(drawn) == 4 and drawn[-1] == ""
    assert "step 3 · 1/2 tokens · 0.33 tokens/forward · 0.6 s · 3 forwards · 1 remasked" in drawn[2]
    assert " two" in drawn[1] and "one" not in screen.getvalue()


def test_a_live_view_of_several_prompts_leaves_nothing_behind() -> None:
    brush, screen = painter(width=80)
    live = Live(brush, lambda rows: view(len(rows)))
    live([1, 0], 0, canvas_of([[0], [MASK]], 0))
    assert shown(screen.getvalue())[:2] == ["0 ·", "1 one"]  # in the order of the prompts
    live.finish(keep=True)
    live([1, 0], 1, canvas_of([[0], [1]], 1))
    live.finish(keep=True)
    assert shown(screen.getvalue())[-1].startswith("step 1 · 2/2 rows · 2/2 tokens · 0.50 tokens/forward")
    live.finish(keep=False)
    assert screen.getvalue().endswith("\r\x1b[2A\x1b[J")
