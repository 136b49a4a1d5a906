"""What a reward function is called with, and what it may return."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

from dllm_rl.errors import RewardError
from dllm_rl.rollouts.calls import Pending
from dllm_rl.rollouts.composition import Values
from dllm_rl.rollouts.workers import ATTEMPTS, Ended


def checked(call: Pending, arguments: Mapping[str, Any], time_limit: float, where: str) -> Values:
    """A call's result as B numbers or None."""
    prompts = arguments["prompts"]
    try:
        values = call.result()
    except TimeoutError as error:
        raise RewardError(
            f"reward function {call.name} did not return within {time_limit:g} s{where}, for rows 0 to "
            f"{len(prompts) - 1} (first prompt {excerpt(prompts[0])}); it is {call.place()}. "
            "Make it return, or raise reward.time_limit"
        ) from error
    except Ended as end:
        on = "all rows together" if end.row is None else f"row {end.row} (prompt {excerpt(prompts[end.row])})"
        raise RewardError(
            f"reward function {call.name} ended its process ({end.how}) {ATTEMPTS} times{where}, by {on}. "
            "What it wrote is above"
        ) from end
    except Exception as error:
        raise RewardError(
            f"reward function {call.name} raised {call.describe(error)}{where}, for rows 0 to "
            f"{len(prompts) - 1} (first prompt {excerpt(prompts[0])}); {call.raised_at(error)}"
        ) from error
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"reward function {call.name} returned {type(values).__name__}{where}; expected a list of {len(prompts)} "
            "numbers or None"
        )
    if len(values) != len(prompts):
        raise RewardError(
            f"reward function {call.name} returned {len(values)} values for {len(prompts)} rows{where}; "
            "expected one each"
        )
    return [_number(call.name, value, row, prompts[row], where) for row, value in enumerate(values)]


def _number(name: str, value: Any, row: int, prompt: Any, where: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, SupportsFloat) or not math.isfinite(float(value)):
        raise RewardError(
            f"reward function {name} returned {value!r} for row {row}{where} (prompt {excerpt(prompt)}); expected a "
            "finite number or None"
        )
    return float(value)


def refuse_signature(name: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Say what a reward function must accept before Python says which keyword it does not."""
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise RewardError(
            f"reward function {name}: {error}. It is called with the keywords {', '.join(arguments)}; end its "
            "signature with **columns and name only columns that the data have"
        ) from error
    except ValueError:  # a callable without a signature, written in C
        return


def takes(function: Callable[..., Any], argument: str) -> bool:
    """Whether a function asks for an argument by name; `**columns` alone asks for the data's columns only."""
    try:
        found = inspect.signature(function).parameters.get(argument)
    except ValueError:  # a callable without a signature, written in C
        return False
    return found is not None and found.kind in (found.POSITIONAL_OR_KEYWORD, found.KEYWORD_ONLY)


def excerpt(prompt: Any, length: int = 80) -> str:
    """The start of a prompt, text or messages, for an error."""
    text = repr(prompt)
    return text if len(text) <= length else f"{text[: length - 3]}..."
