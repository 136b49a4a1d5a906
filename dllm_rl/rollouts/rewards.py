"""Reward functions in TRL's convention: called with keywords, checked, kept to a time limit, summed with weights.

Does not import torch, so that a recipe's rewards can be checked without it.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

from dllm_rl.errors import RecipeError, RewardError
from dllm_rl.rollouts.calls import Call, is_async, start, watched
from dllm_rl.rollouts.functions import load_function

__all__ = [
    "RewardFunction",
    "RewardPanel",
    "RewardResult",
    "check_rewards",
    "load_function",
    "load_reward",
]

Values = list[float | None]


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A reward function and the name it has in logs and errors."""

    name: str
    function: Callable[..., Any]
    """`f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or async; None: no reward."""


def load_reward(reference: str, base: Path | None = None) -> RewardFunction:
    """The reward function that a recipe names; `rewards/gsm8k.py:correctness` is called gsm8k.correctness.

    Raises:
        RecipeError: no such file, module or function, or the hub id of a reward model.
    """
    function = load_function(reference, base)
    return RewardFunction(reference.rpartition("/")[2].replace(".py:", ".").replace(":", "."), function)


@dataclass(frozen=True, slots=True)
class RewardResult:
    """Rewards of a batch of B completions."""

    total: list[float]
    """[B]: weighted sum over the functions that apply to a row."""
    per_function: dict[str, Values]
    """[B] for each function, without its weight; None where it does not apply."""


class RewardPanel:
    """Reward functions with their weights.

    Args:
        functions: each with a name of its own; a bare callable goes by its `__name__`.
        weights: one factor per function; None: 1 each.
        time_limit: seconds that one call of one function may take. A call that overruns is an error that ends the run:
            nothing can stop the thread it runs in. Synchronous functions run one after another, each in a thread of its
            own; asynchronous ones run together.

    Raises:
        RecipeError: no functions, two of one name, or not one finite weight each.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction | Callable[..., Any]],
        weights: Sequence[float] | None = None,
        time_limit: float = 60.0,
    ) -> None:
        self.functions = [f if isinstance(f, RewardFunction) else RewardFunction(_name(f), f) for f in functions]
        self.weights = [1.0] * len(functions) if weights is None else [float(weight) for weight in weights]
        self.time_limit = time_limit
        names = [f.name for f in self.functions]
        if not names or len(set(names)) < len(names):
            raise RecipeError(f"reward functions are {', '.join(names) or 'none'}; expected at least one, each once")
        if len(self.weights) != len(names) or not all(map(math.isfinite, self.weights)):
            raise RecipeError(f"reward weights are {weights} for {', '.join(names)}; expected one finite number each")

    @classmethod
    def load(
        cls,
        references: Sequence[str],
        base: Path | None = None,
        *,
        weights: Sequence[float] | None = None,
        time_limit: float = 60.0,
    ) -> RewardPanel:
        """A panel of the functions that a recipe in the folder `base` names."""
        return cls([load_reward(reference, base) for reference in references], weights, time_limit)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]],
        *,
        update: int | None = None,
    ) -> RewardResult:
        """Judge B completions.

        Args:
            prompts: texts or chat messages, as the data have them.
            completions: in the same form.
            completion_ids: token ids of the completions.
            columns: every other column of the data, one entry per completion.
            update: named in errors.

        Raises:
            RewardError: a function raised, did not return in time, returned anything but B finite numbers or None, no
                function applies to a row, or a column has the name of another argument.
        """
        judged = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        if taken := sorted(judged.keys() & columns.keys()):
            raise RewardError(
                f"the data have a column {taken[0]!r}, which is what reward functions call the run's own; rename the "
                "column, for example with data.map"
            )
        columns = {**judged, **columns}
        sizes = {name: len(column) for name, column in columns.items()}
        if set(sizes.values()) != {len(prompts)}:
            raise RewardError(f"columns for reward functions have lengths {sizes}; expected {len(prompts)} each")
        where = f" at update {update}" if update is not None else ""
        per_function = self._judge({name: list(column) for name, column in columns.items()}, where)
        return RewardResult(
            [self._total(per_function, row, prompts, where) for row in range(len(prompts))], per_function
        )

    def _judge(self, arguments: dict[str, list[Any]], where: str) -> dict[str, Values]:
        _refuse_signatures(self.functions, arguments)
        with watched(), contextlib.ExitStack() as under_way:
            calls = {f.name: self._start(f, arguments) for f in self.functions if is_async(f.function)}
            for call in calls.values():
                under_way.callback(call.cancel)  # for when another function fails first
            values = {}
            for f in self.functions:
                call = calls.get(f.name) or self._start(f, arguments)
                values[f.name] = _checked(call, arguments, self.time_limit, where)
            return values

    def _start(self, f: RewardFunction, arguments: Mapping[str, list[Any]]) -> Call:
        """Call with lists of its own, so that no function sees what another does to them."""
        own = {name: list(column) for name, column in arguments.items()}
        return start(f.name, f.function, own, self.time_limit)

    def _total(self, per_function: dict[str, Values], row: int, prompts: Sequence[Any], where: str) -> float:
        applying = [
            weight * value
            for weight, values in zip(self.weights, per_function.values(), strict=True)
            if (value := values[row]) is not None
        ]
        if not applying:
            raise RewardError(
                f"no reward function applies to row {row}{where} (prompt {_excerpt(prompts[row])}): "
                f"{', '.join(per_function)} returned None; expected a number from at least one"
            )
        return math.fsum(applying)


def check_rewards(
    functions: Sequence[RewardFunction | Callable[..., Any]],
    rows: Sequence[Mapping[str, Any]],
    gold: Sequence[str],
    *,
    time_limit: float = 60.0,
) -> dict[str, Values]:
    """What reward functions give for completions written by hand, as a run would call them; `dllm-rl check` shows it.

    Args:
        rows: rows of the data with all their columns; `prompt` may be missing.
        gold: one completion per row. Token ids are empty lists: there is no tokenizer.

    Raises:
        RewardError: see `RewardPanel`.
    """
    names = [name for name in (rows[0] if rows else ()) if name != "prompt"]
    columns = {name: [row.get(name) for row in rows] for name in names}
    prompts = [row.get("prompt", "") for row in rows]
    panel = RewardPanel(functions, time_limit=time_limit)
    return panel(prompts, gold, [[] for _ in rows], columns).per_function


def _checked(call: Call, arguments: Mapping[str, Any], time_limit: float, where: str) -> Values:
    """A call's result as B numbers or None."""
    prompts = arguments["prompts"]
    try:
        values = call.result()
    except TimeoutError as error:
        raise RewardError(
            f"reward function {call.name} did not return within {time_limit:g} s{where}, for rows 0 to "
            f"{len(prompts) - 1} (first prompt {_excerpt(prompts[0])}); it is {call.place()}. "
            "Make it return, or raise reward.time_limit"
        ) from error
    except Exception as error:
        raise RewardError(
            f"reward function {call.name} raised {type(error).__name__}: {error}{where}, for rows 0 to "
            f"{len(prompts) - 1} (first prompt {_excerpt(prompts[0])}); {call.raised_at(error)}"
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
            f"reward function {name} returned {value!r} for row {row}{where} (prompt {_excerpt(prompt)}); expected a "
            "finite number or None"
        )
    return float(value)


def _refuse_signatures(functions: Sequence[RewardFunction], arguments: Mapping[str, Any]) -> None:
    """Say what a reward function must accept before Python says which keyword it does not."""
    for f in functions:
        try:
            inspect.signature(f.function).bind(**arguments)
        except TypeError as error:
            raise RewardError(
                f"reward function {f.name}: {error}. It is called with the keywords {', '.join(arguments)}; end its "
                "signature with **columns and name only columns that the data have"
            ) from error
        except ValueError:  # a callable without a signature, written in C
            continue


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _excerpt(prompt: Any, length: int = 80) -> str:
    text = repr(prompt)
    return text if len(text) <= length else f"{text[: length - 3]}..."
