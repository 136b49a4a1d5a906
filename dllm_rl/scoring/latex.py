"""LaTeX answers in one plain spelling, without what carries no value: wrappers, units, currency, signs of degree."""

from __future__ import annotations

import re

from dllm_rl.scoring.characters import plain_characters

_SPELLED = {
    "\u2013": "-",
    "\u2014": "-",
    "\u00d7": "\\times ",
    "·": "\\cdot ",
    "÷": "/",
    "π": "\\pi ",
    "∞": "\\infty ",
    "\u222a": "\\cup ",
    "≤": "\\le ",
    "≥": "\\ge ",
    "±": "\\pm ",
    "²": "^2",
    "³": "^3",
    "½": "\\frac{1}{2}",
    "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}",
    "\u2032": "'",
    "∅": "\\emptyset ",
}
_UNICODE = str.maketrans(_SPELLED | dict.fromkeys("°%£€¥₹", ""))
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=\d)\s*(?:,\s*\\!|\{,\}|\\,)\s*(?=\d{3}(?!\d))|(?<!\\)\\!\s*", ""),
        (r"√\s*(?:\(([^()]*)\)|([A-Za-z0-9.]+))", r"\\sqrt{\1\2}"),
        (r"^\s*\\[(\[](.*)\\[)\]]\s*$", r"\1"),
        (r"\\(?:left|right|[bB]ig{1,2}[lrm]?|displaystyle|limits)(?![A-Za-z])", ""),
        (r"(?<!\\)\\[;:, ]|(?<=\d)~(?=\D)|\\q?quad(?![A-Za-z])|\\(?:hspace|vspace)\{[^{}]*\}", " "),
        (r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z]))|\\degree(?![A-Za-z])", ""),
        (r"\$|\\pounds(?![A-Za-z])|\\euro(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge"),
        (r"\\(?:mathrm|mathbf|mathit|boldsymbol|bm|operatorname\*?)\s*\{([^{}]*)\}", r"\1"),
    )
)
_TEXT_COMMAND = r"\\(?:text(?:rm|bf|it|normal|sf)?|mbox|hbox%s)\s*"
_TEXT = re.compile(_TEXT_COMMAND % "" + r"\{([^{}]*)\}")
_TEXT_UNIT = re.compile(
    r"(?P<value>.*?[^\s{(\[,~\\])(?:[\s~]|\\[ ,;:!])*"
    + _TEXT_COMMAND % "|mathrm"
    + r"\{(?P<unit>[^{},]*)\}\s*(?:\^\s*\{?\d\}?)?\s*[.]?\s*"
)
_WORD_UNIT = re.compile(r"(?P<value>.*(?:[\d})\]]|\\pi))\s+[A-Za-z]{2,}(?:\s+[A-Za-z]{2,})*(?:\s*\^\s*\{?\d\}?)?[.]?")
_NO_UNIT = re.compile(r"\b(?:or|and|to)\b|^\s*[ap]\.?m\b")
_LEAD = re.compile(r"(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is\b|\s*[:=])?\s*:?\s*", re.IGNORECASE)


def plain(text: str) -> str:
    """One spelling for what LaTeX and Unicode spell in many; wrappers, currency, percent and degree signs removed."""
    text = plain_characters(text).replace("\\%", "").replace("\\$", "").translate(_UNICODE).strip()
    unit = _TEXT_UNIT.fullmatch(text)
    if unit is not None and not _NO_UNIT.search(unit["unit"]):
        text = unit["value"]
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _TEXT.sub(r" \1 ", text)
    return _LEAD.sub("", re.sub(r"\s+", " ", text), count=1).strip("`# ").rstrip(".;, ")


def without_unit(text: str) -> str:
    r"""`plain` text without the words that trail its value (`3\sqrt{2} square cm`)."""
    unit = _WORD_UNIT.fullmatch(text)
    return unit["value"] if unit is not None and not _NO_UNIT.search(text[unit.end("value") :]) else text
