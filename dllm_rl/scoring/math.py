"""Whether two mathematical answers are the same: exact and structural first, math-verify in a worker for the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dllm_rl.errors import DataError
from dllm_rl.scoring.answers import final_answer
from dllm_rl.scoring.latex import plain, without_unit
from dllm_rl.scoring.numbers import read_number
from dllm_rl.scoring.pool import expressions_equal
from dllm_rl.scoring.result import EMPTY_ANSWER, NO_ANSWER, Score

MAX_LENGTH = 1000
MAX_LEAF = 300
"""Characters of an answer, and of one expression inside it, beyond which it is not read."""

_ASSIGNED = re.compile(
    r"(?P<name>\\?[A-Za-z]+(?:_\{?\w+\}?)?'?(?:\([A-Za-z0-9, ]*\))?|\([A-Za-z, ]+\))"
    r"\s*(?:=|\\in(?![A-Za-z]))\s*(?P<value>[^=]+)"
)
_ASSIGNED_BACK = re.compile(r"(?P<value>[^=]+?)\s*=\s*(?P<name>[A-Za-z])")
_BASED = re.compile(r"(?P<digits>[0-9A-Za-z]+)_\{?(?P<base>\d+)\}?")
_MATRIX = re.compile(r"\\begin\{[pbvBV]?(?:small)?matrix\}(?P<body>.*)\\end\{[pbvBV]?(?:small)?matrix\}", re.DOTALL)
_BRACKETED = re.compile(
    r"(?P<open>[(\[]|\\\{|\\lbrace(?![A-Za-z]))(?P<body>.*)(?P<close>[)\]]|\\\}|\\rbrace)", re.DOTALL
)
_UNSURE = re.compile(
    r"\b(?:or|to|between|either|maybe|about|approximately)\b|\\approx|≈|\?|\d\s*:\s*\d|\d\s+\d|\d\s*[ap]\.?m\b"
    r"|^\s*\d+(?:\.\d+)?\s*(?:-|\\sim|\\dots|\.\.\.?)\s*\d+(?:\.\d+)?\s*$"
)
_HUGE = re.compile(r"(?:\^|\*\*)\s*[{(]*\s*[-+]?\s*(?:\d{4,}|\d+\s*(?:\^|\*\*|!))|\d{4,}\s*!|!\s*!")
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|ne|in)(?![A-Za-z])")
_LONG_WORD = re.compile(r"(?<![\\A-Za-z])(?!sin|cos|tan|cot|sec|csc|log|exp|sqrt|arc|max|min|mod|gcd|lcm)[A-Za-z]{3,}")


def score_math(completion: str, row: Mapping[str, Any]) -> Score:
    """1 when the completion's answer is the row's `answer`, as mathematics; else 0."""
    if not isinstance(row.get("answer"), str):
        raise DataError(f"math row {dict(row)!r}: expected a column answer with text")
    answer = final_answer(completion)
    if not answer:
        return NO_ANSWER if answer is None else EMPTY_ANSWER
    if equivalent(row["answer"], answer):
        return Score.right(answer, f"equal to {row['answer']}")
    return Score.wrong(answer, f"not equal to {row['answer']}")


def score_number(completion: str, row: Mapping[str, Any]) -> Score:
    """1 when the completion's answer is the number after the last `####` of the row's `answer` (or all of it)."""
    if not isinstance(row.get("answer"), (str, int, float)):
        raise DataError(f"gsm8k row {dict(row)!r}: expected a column answer, ending in #### and a number")
    gold_text = str(row["answer"]).rpartition("####")[2].strip()
    gold = read_number(gold_text)
    if gold is None:
        raise DataError(f"gsm8k row {dict(row)!r}: its answer ends in {gold_text!r}, expected a number")
    answer = final_answer(completion, hash_marker=True)
    if not answer:
        return NO_ANSWER if answer is None else EMPTY_ANSWER
    value = read_number(answer)
    if value is None:
        return Score.wrong(answer, f"not one number; expected {gold_text}")
    if value != gold:
        return Score.wrong(answer, f"expected {gold_text}")
    return Score.right(answer, f"equal to {gold_text}")


def equivalent(gold: str, answer: str) -> bool:
    r"""Whether `answer` states what `gold` states.

    Tuples, intervals and matrices compare in order; comma lists, sets, unions and both signs of `\pm` in any order.
    Hedges, ranges and clock times are not answers. Decimals equal fractions exactly; approximations of irrational
    numbers equal nothing.
    """
    if len(answer) > MAX_LENGTH:
        return False
    return _same(plain(gold), plain(answer))


def _same(gold: str, answer: str) -> bool:
    if _spelling(gold) == _spelling(answer):
        return bool(gold)
    (gold_name, gold_value), (answer_name, answer_value) = (
        _assigned(without_unit(gold)),
        _assigned(without_unit(answer)),
    )
    if gold_name and answer_name and gold_name != answer_name:
        return False
    numbers = read_number(gold), read_number(answer)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if "=" not in gold_value + answer_value:  # else one of them is an equation, and has to meet one
        gold, answer = gold_value, answer_value
    for split, ordered in ((_union, False), (_matrix, True), (_tuple, True), (_items, False)):
        gold_parts, answer_parts = split(gold), split(answer)
        if gold_parts is not None and answer_parts is not None:
            return _all_same(gold_parts, answer_parts, ordered)
        if (gold_parts is None) != (answer_parts is None) and not (_RELATION.search(gold) or _RELATION.search(answer)):
            return False
    return _same_leaf(gold, answer)


def _all_same(gold: Sequence[str], answer: Sequence[str], ordered: bool) -> bool:
    if len(gold) != len(answer):
        return False
    if ordered:
        return all(_same(g, a) for g, a in zip(gold, answer, strict=True))
    left = list(answer)
    for item in gold:
        match = next((i for i, candidate in enumerate(left) if _same(item, candidate)), None)
        if match is None:
            return False
        del left[match]
    return True


def _same_leaf(gold: str, answer: str) -> bool:
    """Two expressions that are neither spelled alike nor both numbers nor collections."""
    if _spelling(gold) == _spelling(answer):
        return bool(gold)
    numbers = read_number(gold), read_number(answer)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if _BASED.fullmatch(gold) or _BASED.fullmatch(answer):
        return False  # digits in a stated base: the same digits and the same base, or another number
    if not gold or not answer or len(answer) > MAX_LEAF or _UNSURE.search(answer) or _HUGE.search(answer):
        return False
    if _LONG_WORD.search(gold) or _LONG_WORD.search(answer):
        return False
    return expressions_equal(gold, answer) is True


def _spelling(text: str) -> str:
    """What is left without white space, case of words, brackets around words and braces around single symbols."""
    text = re.sub(r"\{(\w)\}", r"\1", re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text))
    base = _BASED.fullmatch(text)
    if base is not None:
        return f"{base['digits']}_{base['base']}"
    word = re.fullmatch(r"[\"'(]*([A-Za-z]+)[\"').]*", text)
    return word[1].casefold() if word is not None else text


def _assigned(text: str) -> tuple[str, str]:
    r"""The name and the value of `x = value`, `value = x` or `x \in value`; no name when there is none."""
    found = _ASSIGNED.fullmatch(text) or _ASSIGNED_BACK.fullmatch(text)
    return (found["name"], found["value"].strip()) if found is not None else ("", text)


def _union(text: str) -> list[str] | None:
    parts = re.split(r"\\cup(?![A-Za-z])", text)
    return [part.strip() for part in parts] if len(parts) > 1 else None


def _items(text: str) -> list[str] | None:
    r"""Items of a set in braces, or of a list (commas, `and`, `or`), with both signs of `\pm` written out."""
    bracketed = _bracketed(text)
    is_set = bracketed is not None and bracketed["open"].startswith("\\")
    body = bracketed["body"] if bracketed is not None and is_set else text
    parts = [item.strip() for part in _top_level(body) for item in re.split(r"\band\b|\bor\b", part)]
    items = [item for part in parts if part for item in _signs(part)]
    return items if is_set or len(items) > 1 else None


def _signs(text: str) -> list[str]:
    if text.count("\\pm") != 1:
        return [text]
    return [text.replace("\\pm", sign).strip().removeprefix("+").strip() for sign in "+-"]


def _matrix(text: str) -> list[str] | None:
    found = _MATRIX.fullmatch(text)
    if found is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", found["body"]) if row.strip()]
    return [str(len(rows)), *(cell.strip() for row in rows for cell in row)]


def _tuple(text: str) -> list[str] | None:
    """Kind of bracket and items of a tuple or an interval."""
    found = _bracketed(text)
    if found is None or found["open"] not in ("(", "[") or found["close"] not in (")", "]"):
        return None
    items = _top_level(found["body"])
    return [f"\\{found['open']}{found['close']}", *items] if len(items) > 1 else None


def _bracketed(text: str) -> re.Match[str] | None:
    """The text as one bracket and its content: `(1,2)`, but not `(1,2),(3,4)`."""
    found = _BRACKETED.fullmatch(text)
    depth = 0
    for symbol in found["body"] if found is not None else "":
        depth += (symbol in "([{") - (symbol in ")]}")
        if depth < 0:
            return None
    return found


def _top_level(text: str) -> list[str]:
    """Split at commas and semicolons that are not inside brackets."""
    parts, depth, start = [], 0, 0
    for at, symbol in enumerate(text):
        if symbol in "([{":
            depth += 1
        elif symbol in ")]}":
            depth -= 1
        elif symbol in ",;" and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]
