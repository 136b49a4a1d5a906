"""Reward functions in TRL's convention: called with keywords, checked, kept to a time limit, made one number.

Does not import torch, so that a recipe's rewards can be checked without it.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dllm_rl.errors import RecipeError, RewardError
from dllm_rl.rollouts.calls import Pending, is_async, start, watched
from dllm_rl.rollouts.composition import (
    Values,
    gate_product,
    normalized_in_groups,
    speed_factor,
    weighted_sum,
)
from dllm_rl.rollouts.functions import load_function
from dllm_rl.rollouts.returned import checked, excerpt, refuse_signature, takes
from dllm_rl.rollouts.workers import RemoteFunction, RewardWorkers
from dllm_rl.shipped import find

__all__ = [
    "RewardFunction",
    "RewardPanel",
    "RewardResult",
    "check_rewards",
    "load_function",
    "load_reward",
]


JUDGED = ("prompts", "completions", "completion_ids")
"""Keywords that every reward function is called with, beside the data's columns."""
FACTS = ("forwards", "gen_length")
"""What a run knows of each rollout; a function gets those that it names."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.py)(?:@\w+)?")


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A reward function and the name it has in logs and errors."""

    name: str
    function: Callable[..., Any]
    """`f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or async; None: no reward."""


def load_reward(reference: str, base: Path | None = None, workers: RewardWorkers | None = None) -> RewardFunction:
    """The reward function that a recipe names; `rewards/gsm8k.py:correctness` is called gsm8k.correctness.

    `owner/name`, the hub id of a reward model, or the path of a folder that holds one, loads it.

    Args:
        workers: where it is to run, if it is a plain function.

    Raises:
        RecipeError: no such file, module, function or reward model.
    """
    folder = find(reference, base)
    is_folder = folder is not None and folder.is_dir()
    if is_folder or _HUB_ID.fullmatch(reference):
        from dllm_rl.rollouts.reward_model import RewardModel

        return RewardFunction(Path(reference).name, RewardModel(str(folder) if is_folder else reference))
    function = load_function(reference, base)
    if workers is not None and not is_async(function):
        function = workers.take(reference, base, function)
    return RewardFunction(reference.rpartition("/")[2].replace(".py:", ".").replace(":", "."), function)


@dataclass(frozen=True, slots=True)
class RewardResult:
    """Rewards of a batch of B completions."""

    total: list[float]
    """[B]: what an algorithm learns from."""
    per_function: dict[str, Values]
    """[B] for each function and gate, without its weight; None where it does not apply."""
    unshaped: list[float]
    """[B]: the weighted sum before gates, speed and normalisation."""


class RewardPanel:
    """Reward functions, and how their values become one number.

    total = (product of gates) * speed ** speed_exponent * (sum of weight * value), speed = (T_max - T + 1) / T_max.

    Args:
        functions: each with a name of its own; a bare callable goes by its `__name__`.
        weights: one factor per function; None: 1 each. A function of weight 0 is reported and nothing else.
        time_limit: seconds that one call of one function may take. A call that overruns is an error that ends the run:
            nothing can stop the thread it runs in. Synchronous functions run one after another, each in a thread of its
            own; asynchronous ones, and those in processes of their own, run together.
        gates: functions whose values, from 0 to 1, multiply the weighted sum; None lets a row pass.
        speed_exponent: how much more a completion made in fewer forwards is worth; 0: not at all.
        normalization: "none", or "per_function": each function's values, before they are weighted, are centred and
            divided by their deviation within the group that answers one prompt. Not with gates or speed, which need
            totals that are not negative.

    Raises:
        RecipeError: no functions, two of one name, not one finite weight each, no weight but 0, or settings that
            exclude each other.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction | Callable[..., Any]],
        weights: Sequence[float] | None = None,
        time_limit: float = 60.0,
        *,
        gates: Sequence[RewardFunction | Callable[..., Any]] = (),
        speed_exponent: float = 0.0,
        normalization: Literal["none", "per_function"] = "none",
    ) -> None:
        self.functions = [_named(f) for f in functions]
        self.gates = [_named(f) for f in gates]
        self.weights = [1.0] * len(functions) if weights is None else [float(weight) for weight in weights]
        self.time_limit, self.speed_exponent, self.normalization = time_limit, speed_exponent, normalization
        names = [f.name for f in (*self.functions, *self.gates)]
        if not self.functions or len(set(names)) < len(names):
            raise RecipeError(f"reward functions are {', '.join(names) or 'none'}; expected at least one, each once")
        if len(self.weights) != len(self.functions) or not all(map(math.isfinite, self.weights)):
            raise RecipeError(f"reward weights are {weights} for {', '.join(names)}; expected one finite number each")
        if not any(self.weights):
            raise RecipeError(f"reward weights are {weights}; a weight of 0 only reports, so nothing would be learned")
        if normalization == "per_function" and (self.gates or speed_exponent > 0):
            raise RecipeError(
                "reward.normalization: per_function makes about half of all totals negative, which gates and "
                "speed_exponent cannot multiply; drop one of the two"
            )

    @classmethod
    def load(
        cls,
        references: Sequence[str],
        base: Path | None = None,
        *,
        weights: Sequence[float] | None = None,
        time_limit: float = 60.0,
        gates: Sequence[str] = (),
        speed_exponent: float = 0.0,
        normalization: Literal["none", "per_function"] = "none",
        workers: int = 0,
    ) -> RewardPanel:
        """A panel of the functions that a recipe in the folder `base` names, the plain ones in so many processes."""
        pool = RewardWorkers(min(workers, len(references) + len(gates))) if workers else None
        return cls(
            [load_reward(reference, base, pool) for reference in references],
            weights,
            time_limit,
            gates=[load_reward(reference, base, pool) for reference in gates],
            speed_exponent=speed_exponent,
            normalization=normalization,
        )

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]],
        *,
        rollout: Mapping[str, Sequence[int]] | None = None,
        group_size: int | None = None,
        update: int | None = None,
    ) -> RewardResult:
        """Judge B completions.

        Args:
            prompts: texts or chat messages, as the data have them.
            completions: in the same form.
            completion_ids: token ids of the completions.
            columns: every other column of the data, one entry per completion.
            rollout: what is known of how each completion was made, for functions that name it: `forwards`, network
                evaluations; `gen_length`, positions it could fill. speed_exponent needs both.
            group_size: completions per prompt, one prompt's after another's; per-function normalisation needs it.
            update: named in errors.

        Raises:
            RewardError: a function raised, did not return in time, returned anything but B finite numbers or None, no
                function applies to a row, a gate is not from 0 to 1, a total is negative where gates or speed would
                multiply it, or a column has the name of another argument.
        """
        judged = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        facts = dict(rollout or {})
        if taken := sorted((judged.keys() | facts.keys()) & columns.keys()):
            raise RewardError(
                f"the data have a column {taken[0]!r}, which is what reward functions call the run's own; rename the "
                "column, for example with data.map"
            )
        columns = {**judged, **columns}
        sizes = {name: len(column) for name, column in {**columns, **facts}.items()}
        if set(sizes.values()) != {len(prompts)}:
            raise RewardError(f"columns for reward functions have lengths {sizes}; expected {len(prompts)} each")
        where = f" at update {update}" if update is not None else ""
        per_function = self._judge({name: list(column) for name, column in columns.items()}, facts, where)
        unshaped = self._unshaped(per_function, prompts, where)
        if self.normalization == "per_function":
            total = self._normalized(per_function, group_size)
        else:
            total = self._shaped(per_function, unshaped, facts, prompts, where)
        return RewardResult(total, per_function, unshaped)

    def _judge(
        self, arguments: dict[str, list[Any]], facts: Mapping[str, Sequence[int]], where: str
    ) -> dict[str, Values]:
        functions = [*self.functions, *self.gates]
        seen = {f.name: arguments | {n: list(facts[n]) for n in facts if takes(f.function, n)} for f in functions}
        self.refuse_signatures(arguments, facts)
        with watched(), contextlib.ExitStack() as under_way:
            calls = {f.name: self._start(f, seen[f.name]) for f in functions if _runs_beside(f.function)}
            for call in calls.values():
                under_way.callback(call.cancel)  # for when another function fails first
            values = {}
            for f in functions:
                call = calls.get(f.name) or self._start(f, seen[f.name])
                values[f.name] = checked(call, arguments, self.time_limit, where)
            return values

    def refuse_signatures(self, arguments: Iterable[str], facts: Iterable[str] = FACTS) -> None:
        """Refuse functions that cannot be called with such keywords, before there is anything to judge.

        Args:
            arguments: JUDGED, and the data's other columns.
            facts: what is known of a rollout, for functions that name it.

        Raises:
            RewardError: a function asks for a keyword that there is not, or does not take one that there is.
        """
        given, known = list(arguments), list(facts)
        for f in (*self.functions, *self.gates):
            names = [*given, *(name for name in known if takes(f.function, name))]
            refuse_signature(f.name, f.function, dict.fromkeys(names))

    def _start(self, f: RewardFunction, arguments: Mapping[str, list[Any]]) -> Pending:
        """Call with lists of its own, so that no function sees what another does to them."""
        own = {name: list(column) for name, column in arguments.items()}
        if isinstance(f.function, RemoteFunction):
            return f.function.start(f.name, own, self.time_limit)
        return start(f.name, f.function, own, self.time_limit)

    def _unshaped(self, per_function: dict[str, Values], prompts: Sequence[Any], where: str) -> list[float]:
        values = weighted_sum([per_function[f.name] for f in self.functions], self.weights)
        for row, value in enumerate(values):
            if value is None:
                names = [f.name for f, weight in zip(self.functions, self.weights, strict=True) if weight]
                raise RewardError(
                    f"no reward function applies to row {row}{where} (prompt {excerpt(prompts[row])}): "
                    f"{', '.join(names)} returned None; expected a number from at least one"
                )
        return [value for value in values if value is not None]

    def _shaped(
        self,
        per_function: dict[str, Values],
        unshaped: list[float],
        facts: Mapping[str, Sequence[int]],
        prompts: Sequence[Any],
        where: str,
    ) -> list[float]:
        """Gates and speed multiply, so that a completion that is worth nothing gains nothing by them."""
        if not self.gates and self.speed_exponent == 0:
            return unshaped
        for row, value in enumerate(unshaped):
            if value < 0:
                raise RewardError(
                    f"the weighted sum of rewards is {value:g} for row {row}{where} (prompt {excerpt(prompts[row])}), "
                    "and gates and speed_exponent multiply it: a completion that is worse or slower would be worth "
                    "more. Use rewards that are not negative, or add speed, as rewards/speed.py:fewer_forwards does"
                )
        for gate in self.gates:
            for row, passes in enumerate(per_function[gate.name]):
                if passes is not None and not 0 <= passes <= 1:
                    raise RewardError(
                        f"gate {gate.name} returned {passes:g} for row {row}{where} (prompt {excerpt(prompts[row])}); "
                        "expected a number from 0 to 1, or None to let it pass"
                    )
        factor = gate_product([per_function[gate.name] for gate in self.gates], len(unshaped))
        if self.speed_exponent > 0:
            if missing := [name for name in ("forwards", "gen_length") if name not in facts]:
                raise RewardError(f"speed_exponent needs {missing[0]} of each completion, which are not known here")
            speed = speed_factor(facts["forwards"], facts["gen_length"], self.speed_exponent)
            factor = [gate * fast for gate, fast in zip(factor, speed, strict=True)]
        return [value * times for value, times in zip(unshaped, factor, strict=True)]

    def _normalized(self, per_function: dict[str, Values], group_size: int | None) -> list[float]:
        if group_size is None:
            raise RewardError("normalization per_function compares the completions of a prompt: give group_size")
        values = [normalized_in_groups(per_function[f.name], group_size) for f in self.functions]
        return [value for value in weighted_sum(values, self.weights) if value is not None]

    @property
    def shapes(self) -> bool:
        """Whether totals are anything else than weighted sums."""
        return bool(self.gates) or self.speed_exponent > 0 or self.normalization != "none"


def check_rewards(
    panel: RewardPanel,
    rows: Sequence[Mapping[str, Any]],
    completions: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    rollout: Mapping[str, Sequence[int]] | None = None,
) -> RewardResult:
    """What reward functions give for completions written by hand, as a run would call them; `dllm-rl check` shows it.

    Args:
        rows: rows of the data with all their columns; `prompt` may be missing.
        completions: one per row. Token ids are empty lists: there is no tokenizer.
        prompts: None: the rows' own.
        rollout: as for the panel. Rows are groups of one, so per-function normalisation gives zeros.

    Raises:
        RewardError: see `RewardPanel`.
    """
    names = [name for name in (rows[0] if rows else ()) if name != "prompt"]
    columns = {name: [row.get(name) for row in rows] for name in names}
    asked = prompts if prompts is not None else [row.get("prompt", "") for row in rows]
    return panel(asked, completions, [[] for _ in rows], columns, rollout=rollout, group_size=1)


def _runs_beside(function: Callable[..., Any]) -> bool:
    """Whether others may run at the same time."""
    return is_async(function) or isinstance(function, RemoteFunction)


def _named(function: RewardFunction | Callable[..., Any]) -> RewardFunction:
    if isinstance(function, RewardFunction):
        return function
    return RewardFunction(str(getattr(function, "__name__", type(function).__name__)), function)
