"""HumanEval and MBPP: the code of a completion, and whether it passes the row's tests.

Sources: Chen et al., https://arxiv.org/abs/2107.03374; Austin et al., https://arxiv.org/abs/2108.07732. Deviation from
both releases: the tests run in another process than the code they judge (`scoring.sandbox`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dllm_rl.errors import DataError
from dllm_rl.scoring.result import Score
from dllm_rl.scoring.sandbox.run import Job, check

_FENCE = re.compile(
    r"(?P<indent>[ \t]*)(?P<marks>```+|~~~+)[ \t]*(?:\{?\.?(?P<language>[\w+#.-]*)\}?)"
    r"(?:[ \t]+\w+=.*)?[ \t]*(?:<\|\w+\|>)*"
)
_PYTHON = {"", "python", "python3", "py"}
_DEFINED = re.compile(r"^(?:def|class)[ \t]+(\w+)", re.MULTILINE)
_CALLED = re.compile(r"\b([A-Za-z_]\w*)[ \t]*\(")
_FIRST_LINE = re.compile(
    r"import[ \t]+\w|from[ \t]+\S+[ \t]+import\b|@\w|(?:async[ \t]+)?def[ \t]+\w|class[ \t]+\w|[A-Za-z_]\w*[ \t]*=(?!=)"
)
_LATER_LINE = re.compile(
    r"\s|#|[\])}]|\"\"\"|'''|(?:assert|raise|del|global)\b|\w[\w.\[\], ]*=|\w[\w.]*\("
    r"|(?:if|elif|else|for|while|with|try|except|finally)\b.*:[ \t]*(?:#.*)?$"
)


def score_humaneval(completion: str, row: Mapping[str, Any], *, allow_unsandboxed: bool = False) -> Score:
    """1 when the code passes the row's `check`, else 0. Columns: prompt, entry_point, test.

    A full definition runs after the prompt, whose imports and helpers it may use; anything else continues the prompt,
    its leading white space kept.
    """
    prompt, entry_point, test = (_text(row, name, "humaneval") for name in ("prompt", "entry_point", "test"))
    if not completion.strip():
        return Score.wrong("", "the completion is empty")
    code = find_code(completion, [entry_point])
    whole = defines(code, [entry_point])
    sources = [prompt, code] if whole else [prompt + code]
    tests = f"{test}\ncheck({entry_point})\n"
    return _judged(code, Job(sources, tests, context=prompt, entry_points=[entry_point]), allow_unsandboxed)


def score_mbpp(completion: str, row: Mapping[str, Any], *, allow_unsandboxed: bool = False) -> Score:
    """1 when the code passes every test of the row, else 0.

    Columns: test_list; test_setup_code (full set) or test_imports (sanitized) if there are any; code, of which only the
    names that it defines are used. The code runs first, then the set-up, then the tests.
    """
    tests = row.get("test_list")
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
        raise DataError(f"mbpp row {row.get('task_id')}: expected test_list, a list of assertions; found {tests!r}")
    if not completion.strip():
        return Score.wrong("", "the completion is empty")
    source = "\n".join([row.get("test_setup_code") or "", *(row.get("test_imports") or ()), *tests]) + "\n"
    defined = set(_DEFINED.findall(row.get("code") or ""))
    called = set(_CALLED.findall(source))
    entry_points = sorted(defined & called)
    code = find_code(completion, entry_points or sorted(called))
    return _judged(code, Job([code], source, entry_points=entry_points), allow_unsandboxed)


def _judged(code: str, job: Job, allow_unsandboxed: bool) -> Score:
    verdict = check(job, allow_unsandboxed=allow_unsandboxed)
    return Score.right(code, verdict.reason) if verdict.passed else Score.wrong(code, verdict.reason)


def _text(row: Mapping[str, Any], name: str, task: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"{task} row {row.get('task_id')}: expected a column {name} with text; found {value!r}")
    return value


def defines(code: str, names: Sequence[str]) -> bool:
    """Whether the code defines one of the names at its outermost level, or assigns to it."""
    return any(
        re.search(rf"^(?:(?:async[ \t]+)?(?:def|class)[ \t]+{name}\b|{name}[ \t]*=(?!=))", code, re.M)
        for name in map(re.escape, names)
    )


def find_code(completion: str, names: Sequence[str]) -> str:
    """The code that a completion commits to.

    Only the last `<answer>` is read if there is one. In this order: the last fenced block that defines one of the
    names; a definition outside of blocks, without the prose around it; the last fenced block; all of it, as it is.

    Args:
        names: of functions or classes that are asked for.
    """
    _, tag, tagged = completion.rpartition("<answer>")
    completion = (tagged.partition("</answer>")[0].strip("\n") + "\n" if tag else completion).removeprefix("\ufeff")
    blocks, outside = split_blocks(completion, names)
    defining = [block for block in blocks if defines(block, names)]
    if defining:
        return defining[-1]
    if defines(outside, names):
        return _without_prose(outside, names)
    return blocks[-1] if blocks else completion


def split_blocks(text: str, names: Sequence[str] = ()) -> tuple[list[str], str]:
    """Contents of fenced blocks of Python or of no language, in order, and the text outside of all blocks.

    A block that is never closed runs to the end of the text. A single fence without a language after code closes a
    block that the prompt opened.
    """
    lines = _lines(text)
    fences = [(at, found) for at, line in enumerate(lines) if (found := _FENCE.fullmatch(line.rstrip("\r\n")))]
    if len(fences) == 1 and not fences[0][1]["language"]:
        before = "".join(lines[: fences[0][0]])
        if before[:1] in (" ", "\t") or defines(before, names):
            return [before], ""
    blocks: list[str] = []
    outside: list[str] = []
    opening, start = None, 0
    for at, fence in fences:
        if opening is None:
            outside += lines[start:at]
        elif not _closes(fence, opening):
            continue
        else:
            blocks += _content(opening, lines[start:at])
        opening, start = (fence if opening is None else None), at + 1
    if opening is None:
        outside += lines[start:]
    else:
        blocks += _content(opening, lines[start:])
    return blocks, "".join(outside)


def _closes(fence: re.Match[str], opening: re.Match[str]) -> bool:
    """As in CommonMark: bare, of the same mark, not shorter, and indented by less than four more."""
    deeper = len(fence["indent"].expandtabs(4)) - len(opening["indent"].expandtabs(4))
    return not fence["language"] and fence["marks"].startswith(opening["marks"]) and deeper < 4


def _content(opening: re.Match[str], lines: Sequence[str]) -> list[str]:
    """The block as a list of one; of none if it is in another language."""
    if opening["language"].lower() not in _PYTHON:
        return []
    return ["".join(line.removeprefix(opening["indent"]) for line in lines)]


def _lines(text: str) -> list[str]:
    """With their ends. `splitlines` would also cut at characters that end no line of code."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _without_prose(text: str, names: Sequence[str]) -> str:
    """Passages of code, up to the last one that defines one of the names.

    A passage goes from a definition, import or assignment to the first line after it that is no code.
    """
    passages: list[str] = []
    inside, quotes = False, 0
    for line in _lines(text):
        in_text = inside and quotes % 2 == 1
        begins = bool(_FIRST_LINE.match(line))
        if not in_text and begins and not inside:
            passages.append("")
        inside = in_text or begins or (inside and bool(_LATER_LINE.match(line)))
        if inside:
            passages[-1] += line
            quotes += line.count('"""') + line.count("'''")
    last = max(at for at, passage in enumerate(passages) if defines(passage, names))
    return "".join(passages[: last + 1])
