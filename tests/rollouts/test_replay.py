"""The page: no text becomes markup, nothing is fetched, and the script replays what the trajectory says."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from dllm_rl.diffusion.trajectory import Op
from dllm_rl.rollouts.ramp import css, ink, ramp
from dllm_rl.rollouts.replay import PLACE, TEMPLATE, as_script_data, replay_page, write_replay
from tests.rollouts.traces import EOS, TEXTS, rollout, trace


class Page(HTMLParser):
    """Elements of a page, and the text of its scripts by their id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._script = str(dict(attrs)["id"])
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] += data


def test_texts_that_look_like_markup_stay_data() -> None:
    made = trace(rollout(), model='</script><img src=x onerror="alert(1)">')
    page, template = Page(replay_page(made)), Page(TEMPLATE.read_text(encoding="utf-8"))
    assert page.elements == template.elements  # not one element more
    data = json.loads(page.scripts["trace"])
    assert data["texts"] == made.texts and {TEXTS[0], TEXTS[1], TEXTS[5]} <= set(made.texts.values())
    assert data["model"] == made.model and data["rows"][0]["prompt_text"] == made.rows[0].prompt_text
    assert [page.scripts[name] for name in ("model", "page")] == [template.scripts[name] for name in ("model", "page")]


def test_data_of_a_script_cannot_end_it() -> None:
    for text in (*TEXTS.values(), "<!--<script>", "]]>", "\u2028\u2029", "é"):
        data = as_script_data({"text": text})
        assert data.isascii() and not set("<>&") & set(data)
        assert json.loads(data) == {"text": text}
    with pytest.raises(ValueError, match="JSON"):
        as_script_data(math.nan)


def test_the_page_is_one_file_that_fetches_nothing() -> None:
    text = replay_page(trace(rollout()))
    page = Page(text)
    named = [value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")]
    assert named == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    policy = next(
        attributes["content"] for tag, attributes in page.elements if tag == "meta" and "http-equiv" in attributes
    )
    assert policy is not None and policy.startswith("default-src 'none';")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


def test_the_template_has_one_place_for_the_trace_and_a_name_for_every_control() -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    assert text.count(PLACE) == 1
    page = Page(text)
    used = set(re.findall(r'by\("(\w+)"\)', page.scripts["page"]))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert used <= set(ids) and len(ids) == len(set(ids))
    controls = [attributes for tag, attributes in page.elements if tag in ("button", "input", "canvas", "svg")]
    assert all(
        "aria-label" in control or "aria-labelledby" in control or control["id"] == "play" for control in controls
    )
    assert "prefers-color-scheme: dark" in text


def test_colours_are_those_of_the_ramp_and_numbers_are_short(tmp_path: Path) -> None:
    made = trace(rollout())
    write_replay(tmp_path / "new/page.html", made)
    data = json.loads(Page((tmp_path / "new/page.html").read_text(encoding="utf-8")).scripts["trace"])
    assert len(data["ramp"]) == len(data["ink"]) == 101
    assert "conf" not in data["events"] and not {"key", "selection_logp", "entropy"} & set(data["rows"][0])
    assert data["ramp"][30] == css(ramp(0.3)) and data["ink"][30] == css(ink(ramp(0.3)))
    for short, exact in zip(data["events"]["logp"], made.events.logp, strict=True):
        assert (short is None and math.isnan(exact)) or short == pytest.approx(exact, rel=1e-4)
    assert all(len(repr(value)) <= 12 for value in data["events"]["logp"])


def in_node(page: Page, program: str) -> Any:
    """What `program` prints as JSON, run after the pure part of the page's script with `trace` at hand."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node to run the page's script")
    source = (
        f"{page.scripts['model']}\nconst trace = {page.scripts['trace']};\nconst bounds = boundsOf(trace);\n{program}"
    )
    done = subprocess.run([node, "-"], input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_script_replays_what_the_trajectory_says() -> None:
    made = rollout(rows=3, length=16, seed=2)
    steps = made.num_steps
    program = f"""
    const seen = [];
    for (let step = 0; step <= {steps}; step++) seen.push(trace.rows.map((_, row) => {{
      const state = stateAt(trace, bounds, row, step);
      return [...Array(16).keys()].map(place => cellAt(trace, state, place, step));
    }}));
    console.log(JSON.stringify([seen, trace.rows.map((_, row) => seriesOf(trace, bounds, row))]));
    """
    seen, series = in_node(Page(replay_page(trace(made))), program)
    for step in range(steps + 1):
        tokens = [[cell["token"] for cell in row] for row in seen[step]]
        canvas = made.completion_canvas(step).tolist()
        assert tokens == [[None if token == made.mask_id else token for token in row] for row in canvas]
        events = made.events
        fresh = {
            (r, p)
            for r, p, s in zip(events.row.tolist(), events.position.tolist(), events.step.tolist(), strict=True)
            if s == step
        }
        marked = {(r, p) for r, row in enumerate(seen[step]) for p, cell in enumerate(row) if cell["fresh"]}
        assert marked == (fresh if step else set())
    final = [cell for row in seen[-1] for cell in row]
    last_op = made._final(made.events.op, -1, steps).flatten().tolist()
    assert [cell["given"] for cell in final] == [op == Op.FIX for op in last_op]
    assert [cell["edited"] for cell in final] == [op == Op.EDIT for op in last_op]
    assert [cell["p"] is not None for cell in final] == [op == Op.WRITE for op in last_op]
    writes = made.events.op == Op.WRITE
    for row, facts in enumerate(series):
        mine = [writes & (made.events.row == row) & (made.events.step == step + 1) for step in range(made.nfe[row])]
        assert facts["count"] == [int(one.sum()) for one in mine]
        means = [float(made.events.logp[one].exp().mean()) if one.any() else None for one in mine]
        assert facts["mean"] == [None if mean is None else pytest.approx(mean, rel=1e-4) for mean in means]


def test_what_was_given_is_not_counted_and_the_plain_text_is_the_tokenizers() -> None:
    made = rollout(rows=2, length=16, seed=2)
    last = made.num_steps
    program = f"""
    const plain = [], drawn = [];
    for (let row = 0; row < 2; row++) for (let step = 0; step <= {last}; step++) {{
      plain.push(plainOf(trace, bounds, row, step));
      drawn.push(drawnBy(seriesOf(trace, bounds, row), step));
    }}
    console.log(JSON.stringify([plain, drawn]));
    """
    plain, drawn = in_node(Page(replay_page(trace(made))), program)
    for place, (row, step) in enumerate((row, step) for row in range(2) for step in range(last + 1)):
        here = (made.events.op == Op.WRITE) & (made.events.row == row) & (made.events.step <= step)
        assert drawn[place] == int(here.sum())
        tokens = made.completion_canvas(step)[row].tolist()
        whole = "".join(TEXTS[token] for token in tokens if token not in (EOS, made.mask_id))
        assert plain[place] == (whole if step < made.nfe[row] else "text")


def test_the_script_shows_what_cannot_be_seen_and_tells_a_positions_story() -> None:
    made = trace(rollout(rows=1, length=16, seed=2))
    events = made.events
    place = events.position[events.op.index(Op.EDIT)]
    program = f"""
    console.log(JSON.stringify([visible("a\\n\\t\\x1b\\u202e\\ue000日"), textOf(trace, {EOS}), columnsOf("a日本"),
      [...edgesOf([4, 8, 4])], [...edgesOf(null)], storyOf(trace, bounds, 0, {place}, 1000),
      share(1), share(0.9999), share(0.25),
      share(null), number(null), number("-Infinity"), number(-1.5)]));
    """
    shown, end, columns, edges, none, story, *numbers = in_node(Page(replay_page(made)), program)
    assert shown == "a↵⇥<1B><202E><E000>日" and end == "∎" and columns == 5
    assert edges == [4, 12] and none == []
    here = [index for index, position in enumerate(events.position) if position == place]
    assert [line.split(":")[0] for line in story] == [f"step {events.step[index]}" for index in here]
    assert [line.split(": ", 1)[1].split(" ")[0] for line in story] == [
        {Op.WRITE: "written", Op.REMASK: "masked", Op.EDIT: "edited"}[Op(events.op[index])] for index in here
    ]
    assert f"p {math.exp(events.logp[here[0]]):.3f}, logq {events.logq[here[0]]:.3f}" in story[0]
    assert numbers == ["1.000", "> 0.999", "0.250", "none", "none", "-∞", "-1.500"]


def test_the_whole_script_is_one_that_parses() -> None:
    page = Page(replay_page(trace(rollout(rows=2))))
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node to read the page's script")
    source = page.scripts["model"] + page.scripts["page"]
    done = subprocess.run([node, "--check", "-"], input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_rollout_of_many_rows_is_a_page_of_a_few_megabytes() -> None:
    made = rollout(rows=64, length=128)
    page = Page(replay_page(trace(made)))
    per_event = len(page.scripts["trace"]) / len(made.events.row)
    assert per_event * 64 * 1024 < 6e6
    assert torch.equal(torch.tensor(json.loads(page.scripts["trace"])["events"]["token"]), made.events.token)
