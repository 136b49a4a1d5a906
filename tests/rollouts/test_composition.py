"""Weights, gates, speed, normalisation: each against its formula, by itself and through the panel."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from dllm_rl.errors import RecipeError, RewardError
from dllm_rl.rollouts.composition import normalized_in_groups, speed_factor, weighted_sum
from dllm_rl.rollouts.composition import statistics as statistics_of
from dllm_rl.rollouts.rewards import RewardFunction, RewardPanel, RewardResult

FACTS = {"forwards": [1, 4, 8, 9], "gen_length": [8, 8, 8, 8]}


def giving(name: str, *values: float | None) -> RewardFunction:
    return RewardFunction(name, lambda **columns: list(values))


def judge(panel: RewardPanel, size: int = 4, **known: Any) -> RewardResult:
    return panel(["p"] * size, ["c"] * size, [[]] * size, {}, **known)


def test_a_function_sees_what_it_names_of_the_rollout() -> None:
    seen: dict[str, Any] = {}

    def wants(completions: list[str], forwards: list[int], *, gen_length: list[int], **columns: Any) -> list[float]:
        seen["wants"] = (forwards, gen_length, columns)
        return [0.0] * 4

    def before(completions: list[str], **columns: Any) -> list[float]:
        seen["before"] = columns
        return [0.0] * 4

    def strict(prompts: list[str], completions: list[str], completion_ids: list[list[int]]) -> list[float]:
        return [1.0] * 4

    result = judge(RewardPanel([wants, before, strict]), rollout=FACTS)
    usual = {"prompts": ["p"] * 4, "completion_ids": [[]] * 4}
    assert seen == {"wants": ([1, 4, 8, 9], [8] * 4, usual), "before": usual}
    assert result.total == [1.0] * 4


def test_what_takes_all_that_is_left_asks_for_nothing() -> None:
    def odd(completions: list[str], **forwards: Any) -> list[float]:
        return [float("forwards" in forwards)] * 4

    assert judge(RewardPanel([odd]), rollout=FACTS).total == [0.0] * 4


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        ({}, False),
        ({"weights": [2.0]}, False),
        ({"speed_exponent": 0.5}, True),
        ({"gates": [giving("g", 1)]}, True),
        ({"normalization": "per_function"}, True),
    ],
)
def test_whether_totals_are_more_than_sums(settings: dict[str, Any], shapes: bool) -> None:
    assert RewardPanel([giving("a", 1)], **settings).shapes is shapes


def test_a_function_cannot_change_the_count_that_speed_is_made_of() -> None:
    def hides(forwards: list[int], **columns: Any) -> list[float]:
        forwards[:] = [1] * 4
        return [1.0] * 4

    assert judge(RewardPanel([hides], speed_exponent=1.0), rollout=FACTS).total == [1.0, 5 / 8, 1 / 8, 1 / 8]


@pytest.mark.parametrize("name", ["forwards", "gen_length"])
def test_a_column_of_the_same_name_is_refused(name: str) -> None:
    panel = RewardPanel([giving("f", 1, 1, 1, 1)])
    with pytest.raises(RewardError, match=f"a column '{name}'.*rename"):
        panel(["p"] * 4, ["c"] * 4, [[]] * 4, {name: [0] * 4}, rollout=FACTS)


def test_where_nothing_is_known_of_the_rollout_the_function_that_asks_is_named() -> None:
    def wants(forwards: list[int], **columns: Any) -> list[float]:
        return [0.0] * 4

    with pytest.raises(RewardError, match="wants: missing a required argument: 'forwards'"):
        judge(RewardPanel([wants]))
    with pytest.raises(RewardError, match="speed_exponent needs forwards"):
        judge(RewardPanel([giving("f", 1, 1, 1, 1)], speed_exponent=1.0))
    with pytest.raises(RewardError, match="lengths .*'forwards': 3"):
        judge(RewardPanel([giving("f", 1, 1, 1, 1)]), rollout={"forwards": [1, 2, 3]})


@pytest.mark.parametrize("exponent", [0.3, 1.0, 3.0])
def test_speed_is_the_paper_s_factor(exponent: float) -> None:
    correct = [1.0, 0.5, 1.0, 0.0]
    result = judge(RewardPanel([giving("f", *correct)], speed_exponent=exponent), rollout=FACTS)
    longest = 8
    expected = [
        r * ((longest - min(steps, longest) + 1) / longest) ** exponent
        for r, steps in zip(correct, [1, 4, 8, 9], strict=True)
    ]
    assert result.total == pytest.approx(expected, abs=1e-15)
    assert result.unshaped == correct
    assert speed_factor([1, 8, 20], [8, 8, 8], exponent) == [1.0, 8.0**-exponent, 8.0**-exponent]


def test_without_an_exponent_nothing_is_multiplied() -> None:
    result = judge(RewardPanel([giving("f", -1, 0.1, 2, 3)]), rollout=FACTS)
    assert result.total == result.unshaped == [-1, 0.1, 2, 3]


def test_a_faster_wrong_answer_is_never_worth_more() -> None:
    panel = RewardPanel([giving("right", 1, 1, 0, 0), giving("style", 0, -0.5, 0, -0.5)], speed_exponent=1.0)
    with pytest.raises(RewardError, match=r"sum of rewards is -0\.5 for row 3 at update 2 \(prompt 'p'\).*add speed"):
        judge(panel, rollout=FACTS, update=2)


def test_weights_zero_weights_and_what_does_not_apply() -> None:
    panel = RewardPanel(
        [giving("a", 1, None, 3, None), giving("watched", 9, 9, None, 9), giving("b", 1, 1, None, -1)],
        weights=[2.0, 0.0, -0.5],
    )
    assert judge(panel).total == [1.5, -0.5, 6.0, 0.5]


def test_what_is_reported_of_a_function() -> None:
    assert statistics_of([1, None, 3, None, 2, 5], 2) == {
        "": [1, 3, 2, 5],
        "/applies": [1, 0, 1, 0, 1, 1],
        "/group_std": [0, 0, statistics.stdev([2, 5])],
    }


def test_what_is_only_watched_makes_no_reward() -> None:
    panel = RewardPanel([giving("counts", 1, None, 1, 1), giving("watched", 1, 1, 1, 1)], weights=[1, 0])
    with pytest.raises(RewardError, match="no reward function applies to row 1 .*: counts returned None"):
        judge(panel)


def test_gates_multiply_the_weighted_sum_and_pass_where_they_do_not_apply() -> None:
    panel = RewardPanel(
        [giving("a", 1, 1, 1, 0), giving("b", 1, 0, 1, 0)],
        weights=[2.0, 1.0],
        gates=[giving("format", 1, 0, None, 0), giving("half", 0.5, 1, 0.5, 1)],
    )
    result = judge(panel)
    assert result.total == [1.5, 0, 1.5, 0] and result.unshaped == [3, 2, 3, 0]
    assert result.per_function["format"] == [1, 0, None, 0]


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_gates_out_of_range_are_refused(value: float) -> None:
    panel = RewardPanel([giving("a", 1, 1, 1, 1)], gates=[giving("gate", 1, 0, value, None)])
    with pytest.raises(RewardError, match=f"gate gate returned {value} for row 2"):
        judge(panel)
    with pytest.raises(RewardError, match="sum of rewards is -1 for row 0"):
        judge(RewardPanel([giving("a", -1, 1, 1, 1)], gates=[giving("gate", 0, 1, 1, 1)]))


def test_functions_normalised_apart_weigh_what_their_weights_say() -> None:
    right, brief = [1.0, 0.0, 0.0, 0.0], [-100.0, -90.0, -80.0, -130.0]
    panel = RewardPanel(
        [giving("right", *right), giving("brief", *brief)], weights=[1, 0.5], normalization="per_function"
    )
    expected = [
        (r - statistics.mean(right)) / statistics.stdev(right)
        + 0.5 * (b - statistics.mean(brief)) / statistics.stdev(brief)
        for r, b in zip(right, brief, strict=True)
    ]
    result = judge(panel, group_size=4)
    assert result.total == pytest.approx(expected, abs=1e-12)
    assert math.fsum(result.total) == pytest.approx(0, abs=1e-12)
    assert result.unshaped == [-49.0, -45.0, -40.0, -65.0]


def test_normalisation_keeps_to_the_group_and_to_the_rows_that_apply() -> None:
    values = [1.0, None, 3.0, 0.1, 0.1, 0.1, None, 7.0, None]
    root = math.sqrt(2)
    assert normalized_in_groups(values, 3) == pytest.approx([-1 / root, None, 1 / root, 0, 0, 0, None, 0, None])
    with pytest.raises(RewardError, match="group_size"):
        judge(RewardPanel([giving("a", 1, 2, 3, 4)], normalization="per_function"))


def test_sums_do_not_depend_on_the_order_of_functions() -> None:
    columns: list[list[float | None]] = [[1e16], [1.0], [-1e16]]
    assert weighted_sum(columns, [1, 1, 1]) == weighted_sum(columns[::-1], [1, 1, 1]) == [1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [0.0]}, "nothing would be learned"),
        ({"gates": [giving("a", 1)]}, "a, a; expected at least one, each once"),
        ({"normalization": "per_function", "speed_exponent": 1.0}, "drop one of the two"),
        ({"normalization": "per_function", "gates": [giving("g", 1)]}, "drop one of the two"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        RewardPanel([giving("a", 1)], **settings)
