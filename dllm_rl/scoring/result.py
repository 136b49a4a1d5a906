"""What scoring one completion gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """How right one completion is."""

    value: float
    """In [0, 1]; 1 is fully right."""
    answer: str | None
    """The answer that was read from the completion; None when it holds none."""
    explanation: str
    """One sentence: why this value."""

    @classmethod
    def right(cls, answer: str, explanation: str) -> Score:
        return cls(1.0, answer, explanation)

    @classmethod
    def wrong(cls, answer: str | None, explanation: str) -> Score:
        return cls(0.0, answer, explanation)


NO_ANSWER = Score.wrong(None, "no <answer> tag and no box: nothing to score")
EMPTY_ANSWER = Score.wrong("", "the answer is empty")
