"""A worker process: reads pairs of expressions, a JSON line each, and answers whether math-verify finds them equal.

Run as `python -m dllm_rl.scoring.worker`. Parsing and simplifying can hang or exhaust memory: they run nowhere else.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys
from typing import Any

MEMORY_BYTES = 4 << 30
_DECIMAL = re.compile(r"(\d*)\.(\d+)")


def expressions_equal(gold: str, answer: str) -> bool:
    """Whether two LaTeX expressions are equal, exactly. Called in a worker process only: it may never return.

    Decimals are rewritten as the fractions they are, and the numeric comparison runs at 50 digits, so that a decimal
    approximation of an irrational number is not equal to it (math-verify by itself rounds to 6).
    """
    from math_verify import verify

    sides = [_parse(gold), _parse(answer)]
    if not all(sides):
        return False
    exactly = {"float_rounding": 50, "numeric_precision": 50}
    return bool(verify(*sides, **exactly, allow_set_relation_comp=True, timeout_seconds=None))


def _parse(text: str) -> list[Any]:
    """Expressions read from the text, without the raw string that math-verify appends: it would match on spelling."""
    from math_verify import LatexExtractionConfig, parse

    exact = _DECIMAL.sub(lambda found: rf"{{\frac{{{int(found[1] + found[2])}}}{{{10 ** len(found[2])}}}}}", text)
    config = LatexExtractionConfig(boxed_match_priority=-1)
    parsed = parse(f"${exact}$", [config], fallback_mode="no_fallback", parsing_timeout=None)
    return [expression for expression in parsed if not isinstance(expression, str)]


def main() -> None:
    """Serve until the input ends. A line in: `{"gold", "answer", "seconds"}`; a line out: true, false or null."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like a reply
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        print(json.dumps({"error": str(error)}), file=replies, flush=True)
        return
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        signal.alarm(int(job["seconds"]) + 5)  # the parent kills a slow worker; this is for a parent that is gone
        try:
            verdict: bool | None = expressions_equal(job["gold"], job["answer"])
        except Exception:  # a parser given arbitrary text may raise anything
            verdict = None
        signal.alarm(0)
        print(json.dumps(verdict), file=replies, flush=True)


if __name__ == "__main__":
    main()
