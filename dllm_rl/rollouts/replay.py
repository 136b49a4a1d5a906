"""A trace as one page that replays it: no network, no files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dllm_rl.rollouts.ramp import css, ink, ramp
from dllm_rl.rollouts.trace import Trace

TEMPLATE = Path(__file__).with_name("replay.html")
PLACE = "{{TRACE}}"
_NOT_SHOWN = {"selection_logp", "entropy", "key", "decisions"}
_DIGITS = 5


def replay_page(trace: Trace) -> str:
    """The page. Numbers are rounded to five digits; the trace itself holds them in full."""
    before, after = TEMPLATE.read_text(encoding="utf-8").split(PLACE)
    return before + as_script_data(_shown(trace)) + after


def write_replay(path: Path, trace: Trace) -> None:
    """Write the page; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(replay_page(trace), encoding="utf-8")


def as_script_data(content: Any) -> str:
    """JSON that can stand inside a script element: no text in it can end the element or open a comment."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(trace: Trace) -> dict[str, Any]:
    content = trace.model_dump(exclude={"rows": {"__all__": _NOT_SHOWN}})
    events = content["events"]
    del events["conf"]
    for name in ("logq", "logp"):
        events[name] = [float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value for value in events[name]]
    grounds = [ramp(hundredth / 100) for hundredth in range(101)]
    return content | {"ramp": [css(ground) for ground in grounds], "ink": [css(ink(ground)) for ground in grounds]}
