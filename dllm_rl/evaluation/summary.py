"""What a result adds up to: numbers for files, lines for people."""

from __future__ import annotations

import math
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dllm_rl.evaluation.metrics import EvalResult

_PACKAGES = ("dllm-rl", "torch", "transformers", "math-verify")


def summary_of(result: EvalResult) -> dict[str, Any]:
    """All numbers of a result and what they rest on; the same whenever and by however many processes it was made."""
    return {
        "accuracy": result.accuracy,
        "std_error": number(result.std_error),
        "interval_95": list(result.interval),
        "n": result.n,
        "samples": result.samples,
        "pass_at": {str(k): result.pass_at(k).accuracy for k in pass_ks(result)},
        "forwards": number(result.nfe),
        "tokens_per_forward": number(result.tokens_per_forward),
        "length": number(result.length),
        "line": result.protocol.line() if result.protocol else None,
        "protocol": result.protocol.as_dict() if result.protocol else None,
        "environment": _environment(),
    }


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def pass_ks(result: EvalResult) -> list[int]:
    """The k of pass@k that are reported: powers of two, and all samples."""
    count = result.samples
    return sorted({1 << power for power in range(count.bit_length())} | {count}) if count > 1 else []


def lines_of(name: str, result: EvalResult) -> list[str]:
    """What is printed about a task: its accuracy, then what it rests on, indented."""
    low, high = result.interval
    mean = f"avg@{result.samples}" if result.samples > 1 else "accuracy"
    lines = [
        f"{name}: {mean} {result.accuracy:.4f} +- {result.std_error:.4f} (n {result.n})",
        f"  95% interval {low:.4f} to {high:.4f}",
    ]
    for k in pass_ks(result):
        passed = result.pass_at(k)
        low, high = passed.interval
        lines.append(
            f"  pass@{k} {passed.accuracy:.4f} +- {passed.std_error:.4f}, 95% interval {low:.4f} to {high:.4f}"
        )
    if not math.isnan(result.nfe):
        lines.append(
            f"  {result.nfe:.1f} forwards an answer, {result.tokens_per_forward:.2f} tokens per forward, "
            f"{result.length:.1f} tokens before the end of text"
        )
    if result.protocol is not None:
        lines.append(f"  {result.protocol.line()}")
    return lines


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
