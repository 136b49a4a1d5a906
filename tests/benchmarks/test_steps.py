"""Rollouts and whole steps of both sides are the same before they are timed."""

from __future__ import annotations

from benchmarks.rollout import assert_equal_rollouts
from benchmarks.step import assert_equal_steps


def test_greedy_rollouts_are_the_same() -> None:
    assert_equal_rollouts()


def test_two_updates_from_the_same_rollouts_are_the_same() -> None:
    assert_equal_steps()
