"""The page's part on what is free, and what Co-GRPO and dUltra add to it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from results.tiny.free import TRAINED, WAYS, Decoded
from results.tiny.ledger import Run
from results.tiny.markdown import accuracy, table
from results.tiny.methods import METHODS

FAST = ("co_grpo", "dultra")
"""Methods that learn to take few forwards."""
_TITLES = {method.name: method.title for method in METHODS}


def part(task: str, decoded: Sequence[Decoded], runs: Sequence[Run]) -> str:
    """A table of the task's ways, and a sentence for each fast method. Empty if nothing was decoded."""
    mine = [each for each in decoded if each.task == task]
    if not mine:
        return ""
    return f"### What is free\n\n{_table(mine)}\n" + "".join(_comparisons(task, mine, runs))


def _table(decoded: Sequence[Decoded]) -> str:
    seeds = sorted({each.seed for each in decoded if each.seed is not None})
    titles = ["decoded with", "starting weights", "forwards"]
    titles += [f"{_TITLES[TRAINED]}, seed {seed}" for seed in seeds] + (["forwards"] if seeds else [])
    return table(titles, [cells for way in WAYS if (cells := _cells(way.title, decoded, seeds))])


def _cells(way: str, decoded: Sequence[Decoded], seeds: Sequence[int]) -> list[str]:
    here = {each.seed: each for each in decoded if each.way == way}
    if None not in here:
        return []
    of_seeds = [here[seed] for seed in seeds if seed in here]
    trained = [accuracy(here[seed].point) if seed in here else "" for seed in seeds]
    mean = [f"{fmean(each.forwards for each in of_seeds):.2f}" if of_seeds else ""] if seeds else []
    return [way, accuracy(here[None].point), f"{here[None].forwards:.2f}", *trained, *mean]


def _comparisons(task: str, decoded: Sequence[Decoded], runs: Sequence[Run]) -> list[str]:
    """For each fast method, the most accurate free way that takes no more forwards, on CJ-GRPO's weights."""
    lines = []
    ways = [found for way in WAYS if (found := _means(way.title, decoded)) is not None]
    for method in FAST:
        mine = [run for run in runs if (run.task, run.method) == (task, method)]
        if mine and ways:
            right, forwards = fmean(run.after.accuracy for run in mine), fmean(run.after.forwards for run in mine)
            ends = f"{_TITLES[method]} ends at {right:.3f} with {forwards:.2f} forwards (means over seeds)."
            lines.append(f"\n{ends} {_against(right, forwards, ways, mine[0].after.problems)}\n")
    return lines


def _against(right: float, forwards: float, ways: Sequence[tuple[str, float, float]], problems: int) -> str:
    allowed = [found for found in ways if found[2] <= forwards]
    if not allowed:
        return f"No free way on {_TITLES[TRAINED]}'s weights is as fast."
    way, free, cost = max(allowed, key=lambda found: found[1])
    found = f"For no more forwards, {_TITLES[TRAINED]}'s weights under `{way}` are at {free:.3f} with {cost:.2f}"
    if abs(right - free) < 1 / problems**0.5:  # twice the standard error of one accuracy near 1/2
        return f"{found}: as good ({abs(right - free):.3f} apart), and free."
    return f"{found}: {abs(right - free):.3f} {'worse' if right > free else 'better'}, and free."


def _means(way: str, decoded: Sequence[Decoded]) -> tuple[str, float, float] | None:
    here = [each for each in decoded if each.way == way and each.weights == TRAINED]
    if not here:
        return None
    return way, fmean(each.point.accuracy for each in here), fmean(each.forwards for each in here)
