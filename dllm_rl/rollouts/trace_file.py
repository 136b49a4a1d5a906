"""Traces as files: strict JSON, and nothing read that cannot have happened."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from math import isclose, isnan
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dllm_rl.diffusion.trajectory import Events, Op
from dllm_rl.errors import DataError
from dllm_rl.rollouts.trace import DecisionColumns, RowFacts, ScheduleFacts, Trace
from dllm_rl.samplers.names import PARAMETERS

KEY = re.compile(r"-?[0-9]{1,19}")
"""What may be an integer of 64 bits."""


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(trace.model_dump(), ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_trace(path: Path) -> Trace:
    """Read what `write_trace` wrote.

    Raises:
        DataError: there is no such file, it is not JSON, a value is missing, unknown or of the wrong type, or the log
            contradicts itself: events out of order, out of range or impossible on the canvas they meet.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"no trace {path}; `dllm-rl generate MODEL --prompt TEXT --trace {path}` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise DataError(f"{path}: not strict JSON: {error}; expected a trace of `dllm-rl generate --trace`") from error
    if not isinstance(content, dict) or content.get("format") != "dllm-rl trace":
        raise DataError(f'{path}: not a trace; expected an object with "format": "dllm-rl trace"')
    try:
        trace = Trace.model_validate(_upgraded(content, path))
    except ValidationError as error:
        raise DataError(f"{path}: {_first(error)}") from error
    if (
        complaints := _in_rows(trace)
        or _in_decisions(trace)
        or _in_columns(trace)
        or _in_events(trace)
        or _in_sums(trace)
    ):
        raise DataError(f"{path}: {complaints[0]}")
    return trace


def _upgraded(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """A file's content in the present version. What version 1 did not keep stays unknown."""
    version = content.get("version")
    if version not in (1, 2) or isinstance(version, bool):
        raise DataError(f"{path}: a trace of version {version!r}; this release reads versions 1 and 2")
    if version == 2:
        return content
    if "schedule" in content:
        raise DataError(f"{path}: schedule is not a field of a trace of version 1")
    if _explored(content.get("sampler")):
        raise DataError(
            f"{path}: version 1 did not keep what a schedule policy decided, so the likelihood of this rollout cannot "
            "be told from it; make it again with `dllm-rl generate --trace`"
        )
    return content | {"version": 2}


def _explored(sampler: Any) -> bool:
    """Whether a schedule policy drew its actions, whose density is part of the rollout's likelihood."""
    options = sampler.get("options") if isinstance(sampler, dict) and sampler.get("name") == "schedule" else None
    return isinstance(options, dict) and bool(options.get("sigma"))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"found {name}, which is no JSON number; a trace has null or a quoted name")


def _first(error: ValidationError) -> str:
    told = error.errors()[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in told["loc"]).removeprefix(".")
    if told["type"] == "missing":
        return f"{place} is missing"
    if told["type"] == "extra_forbidden":
        return f"{place} is not a field of a trace"
    return f"{place} is {repr(told['input'])[:80]}: {told['msg'].removeprefix('Value error, ')}"


def _in_rows(trace: Trace) -> list[str]:
    if not trace.rows:
        return ["rows is empty; expected at least one"]
    complaints = []
    longest = max(len(row.prompt) for row in trace.rows)
    if trace.prompt_length != longest:
        complaints.append(f"prompt_length is {trace.prompt_length}; the longest prompt has {longest} tokens")
    if trace.sampler.gen_length != trace.gen_length:
        complaints.append(f"gen_length is {trace.gen_length} and sampler.gen_length {trace.sampler.gen_length}")
    steps = len(trace.rows[0].selection_logp)
    for index, row in enumerate(trace.rows):
        place = f"rows[{index}]"
        if len(row.selection_logp) != steps or row.nfe > steps:
            complaints.append(
                f"{place} has {row.nfe} forwards and {len(row.selection_logp)} entries in selection_logp; "
                f"expected as many entries as rows[0], {steps}, and at most so many forwards"
            )
        if (row.entropy is None) != (trace.rows[0].entropy is None) or (row.entropy and len(row.entropy) != steps):
            complaints.append(f"{place}.entropy does not have the {steps} entries that selection_logp has")
        if not KEY.fullmatch(row.key) or not -(2**63) <= int(row.key) < 2**63:
            complaints.append(f"{place}.key is {row.key!r}; expected an integer of 64 bits in decimal")
        if row.blocks is not None and sum(row.blocks) != trace.gen_length:
            complaints.append(f"{place}.blocks make {sum(row.blocks)} positions; gen_length is {trace.gen_length}")
    return complaints


def _in_decisions(trace: Trace) -> list[str]:
    """Whether every row has what the header says was decided, once for every forward of the longest row."""
    return [
        f"rows[{index}].decisions{complaint}"
        for index, row in enumerate(trace.rows)
        for complaint in _in_row_decisions(row.decisions, trace.schedule, trace.rows[0])
    ]


def _in_row_decisions(
    decisions: DecisionColumns | None, schedule: ScheduleFacts | None, first: RowFacts
) -> Iterator[str]:
    if decisions is None or schedule is None or first.decisions is None:
        if decisions is not None or schedule is not None:
            found = "missing" if decisions is None else "there"
            yield f" is {found}; every row has it if there is a schedule, else no row"
        return
    steps, shown = len(first.selection_logp), len(next(iter(first.decisions.features), []))
    for name, column in decisions:
        if column is not None and len(column) != steps:
            yield f".{name} does not have the {steps} entries that selection_logp has"
        if name in PARAMETERS and name != "commit" and (column is not None) != (name in schedule.learned):
            yield f".{name} is {'missing' if column is None else 'there'}; schedule.learned is {schedule.learned}"
    for name, size in (("features", shown), ("action", len(schedule.learned))):
        if any(len(numbers) != size for numbers in getattr(decisions, name)):
            yield f".{name} does not have {size} numbers at every step"


def _in_columns(trace: Trace) -> list[str]:
    lengths = {part.name: len(getattr(trace.events, part.name)) for part in fields(Events)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        return [f"columns of events differ in length: {told}"]
    known = trace.texts.keys()
    places = [*(("a prompt", row.prompt) for row in trace.rows), ("events.token", trace.events.token)]
    return [
        f"texts has no entry for token {token} of {place}"
        for place, tokens in places
        for token in tokens
        if str(token) not in known
    ][:1]


def _in_events(trace: Trace) -> list[str]:
    """The first event that cannot have happened."""
    events = trace.events
    written: set[tuple[int, int]] = set()
    before = (0, 0)
    for index, (row, step, position, op, token) in enumerate(
        zip(events.row, events.step, events.position, events.op, events.token, strict=True)
    ):
        place, cell = f"event {index} ({Op(op).name}, row {row}, step {step}, position {position})", (row, position)
        if row >= len(trace.rows):
            return [f"{place}: there are {len(trace.rows)} rows"]
        if position >= trace.gen_length:
            return [f"{place}: gen_length is {trace.gen_length}"]
        if not (op != Op.FIX) <= step <= trace.rows[row].nfe:
            return [f"{place}: the row took part in {trace.rows[row].nfe} forwards, the first of which is step 1"]
        if (row, step) < before:
            return [f"{place}: comes after row {before[0]}, step {before[1]}; events are sorted by row, then step"]
        if op == Op.WRITE and cell in written:
            return [f"{place}: the position is written already"]
        if op in (Op.REMASK, Op.EDIT) and cell not in written:
            return [f"{place}: the position is hidden"]
        if op == Op.REMASK and token != trace.mask_id:
            return [f"{place}: holds token {token}; expected the mask id, {trace.mask_id}"]
        before = (row, step)
        written.add(cell)
        if op == Op.REMASK:
            written.remove(cell)
    return []


def _in_sums(trace: Trace) -> list[str]:
    derived = trace.trajectory().behaviour_logp.tolist()
    return [
        f"rows[{index}].behaviour_logp is {row.behaviour_logp}; the events, selections and actions add up to {value}"
        for index, (row, value) in enumerate(zip(trace.rows, derived, strict=True))
        if not (_close(row.behaviour_logp, value) or (isnan(row.behaviour_logp) and isnan(value)))
    ]


def _close(one: float, other: float) -> bool:
    return isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
