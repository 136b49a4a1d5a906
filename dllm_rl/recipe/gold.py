"""What a recipe's rewards give to nothing and to the rows' own answers. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dllm_rl.recipe.schema import RolloutSection
from dllm_rl.rollouts.rewards import RewardPanel, RewardResult, check_rewards
from dllm_rl.scoring.answers import last_box

GOLD = ("completion", "solution", "answer", "canonical_solution", "code")
"""Columns that hold a row's own answer; capital letters do not matter."""
LAID_OUT = "<reasoning>\n{}\n</reasoning>\n<answer>\n{}\n</answer>"
SHOWN = 2


def judged_by_hand(
    panel: RewardPanel, rows: Sequence[Mapping[str, Any]], prompts: Sequence[str], rollout: RolloutSection
) -> Iterator[str]:
    """Lines that tell what empty completions and gold answers are worth, and whose gold answer is worth nothing.

    A gold answer is written as it stands, within tags and in a box; of these the best counts, for each function.

    Raises:
        RewardError: see `RewardPanel`.
    """
    empty = _judge(panel, rows, prompts, [""] * len(rows), rollout)
    for row in range(min(SHOWN, len(rows))):
        yield f"reward: row {row}, an empty completion: {_shown(empty, row)}"
    forms = [gold_forms(row) for row in rows]
    if not any(forms):
        yield f"reward: no column holds a gold answer; looked for {', '.join(GOLD)}"
        return
    places = [place for place, texts in enumerate(forms) for _ in texts]
    texts = [text for texts in forms for text in texts]
    gold = _judge(panel, [rows[p] for p in places], [prompts[p] for p in places], texts, rollout)
    for row in range(min(SHOWN, len(rows))):
        if forms[row]:
            best = max((at for at, place in enumerate(places) if place == row), key=lambda at: gold.total[at])
            yield f"reward: row {row}, its own answer {_excerpt(texts[best])}: {_shown(gold, best)}"
    for name, values in gold.per_function.items():
        yield from _worth_nothing(name, values, places)


def gold_forms(row: Mapping[str, Any]) -> list[str]:
    """Completions that give a row's own answer, in the ways tasks ask for it; none if no column holds one."""
    found: list[str] = []
    for name, value in row.items():
        if name.lower() in GOLD and isinstance(value, str | int | float) and str(value).strip():
            text = str(value)
            short = text.rpartition("####")[2].strip() if "####" in text else last_box(text) or text
            found += [text, LAID_OUT.format(text, short), rf"\boxed{{{short}}}"]
    return found


def _worth_nothing(name: str, values: Sequence[float | None], places: Sequence[int]) -> Iterator[str]:
    best: dict[int, float] = {}
    for place, value in zip(places, values, strict=True):
        if value is not None:
            best[place] = max(value, best.get(place, value))
    poor = [place for place, value in best.items() if value <= 0]
    if best and len(poor) == len(best):
        yield f"reward: {name} gives no own answer of {len(best)} rows more than 0"
    elif poor:
        listed = ", ".join(map(str, poor[:10])) + (", ..." if len(poor) > 10 else "")
        yield f"reward: {name} gives the own answers of {len(poor)} of {len(best)} rows 0 or less: rows {listed}"


def _judge(
    panel: RewardPanel,
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[str],
    texts: Sequence[str],
    rollout: RolloutSection,
) -> RewardResult:
    length = rollout.gen_length
    made = {"forwards": [rollout.steps or length] * len(rows), "gen_length": [length] * len(rows)}
    return check_rewards(panel, rows, texts, prompts=prompts, rollout=made)


def _shown(result: RewardResult, row: int) -> str:
    parts = ", ".join(
        f"{name} {'does not apply' if values[row] is None else f'{values[row]:g}'}"
        for name, values in result.per_function.items()
    )
    return f"{result.total[row]:g} ({parts})"


def _excerpt(text: str, length: int = 60) -> str:
    shown = repr(text)
    return shown if len(shown) <= length else f"{shown[: length - 3]}..."
