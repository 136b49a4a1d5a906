"""What a recipe says of hints: which traces they come from, how much is shown, and when. Settings only."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class OffsetPlacement(_Settings):
    """Each chunk stands where it stands in the trace: the paper."""

    type: Literal["offset"] = "offset"


class StretchedPlacement(_Settings):
    """Chunks of short traces are spread over the completion: the released code."""

    type: Literal["stretched"] = "stretched"
    free_tail: Annotated[int, Field(ge=0)] = 30
    """Positions at the end of the completion where no hint stands."""
    max_stretch: Annotated[float, Field(ge=1)] = 1.5
    """Most that offsets are multiplied by."""
    max_gap: Count = 100
    """Most positions between two hints."""


class HintSettings(_Settings):
    """Second rollouts for groups that fail, with parts of a reference trace given."""

    reference_column: str = "trace"
    """Column with the reference trace, as text."""
    answer_column: str = "answer"
    """Column with the answer, which no hint shows."""
    answer_pattern: str | None = None
    """Regular expression whose group 1, where it matches last in that column, is the answer; null: the whole column."""
    unstripped: Literal["error", "drop", "keep"] = "error"
    """What a row does whose trace does not contain the answer as it is written, so that it may be there in other words:
    stop the run, be left out, or be used as it is; rows left out or used are counted and logged."""
    min_chunk: Count = 5
    """Fewest tokens of a chunk; the last one may be shorter."""
    max_chunk: Count = 10
    """Most tokens of a chunk."""
    min_share: Share = 0.2
    """Least share of a trace's chunks that is shown."""
    max_share: Share = 0.6
    """Greatest share of a trace's chunks that is shown."""
    placement: Annotated[OffsetPlacement | StretchedPlacement, Field(discriminator="type")] = OffsetPlacement()
    """Where the chunks stand in the completion."""
    replaced_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest share of a group that hinted completions replace (lambda)."""
    correct_reward: str | None = None
    """Which of reward.functions says whether a completion is correct, as written there; null: the only one."""
    correct_value: float = 1.0
    """A completion is correct if that function, without its weight, gives at least this."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_chunk > self.max_chunk:
            raise ValueError(f"min_chunk is {self.min_chunk} and max_chunk {self.max_chunk}; expected min <= max")
        if self.min_share > self.max_share:
            raise ValueError(f"min_share is {self.min_share} and max_share {self.max_share}; expected min <= max")
        if self.answer_pattern is not None:
            try:
                groups = re.compile(self.answer_pattern).groups
            except re.error as error:
                raise ValueError(f"answer_pattern: {error}; expected a regular expression") from error
            if groups < 1:
                raise ValueError("answer_pattern has no group; put the answer's part in parentheses")
        return self

    def correct_index(self, functions: Sequence[str]) -> int:
        """Which of the reward functions tells what is correct.

        Raises:
            ValueError: it is not among them, or there are several and none is named.
        """
        if self.correct_reward in functions:
            return functions.index(self.correct_reward)
        if self.correct_reward is None and len(functions) == 1:
            return 0
        found = "not given" if self.correct_reward is None else f"{self.correct_reward!r}"
        raise ValueError(f"algorithm.hints.correct_reward is {found}; expected one of {', '.join(functions)}")

    def most_replaced(self, num_generations: int) -> int:
        """K's upper bound, floor(lambda * G).

        Raises:
            ValueError: it is 0, so that no group could be helped.
        """
        most = math.floor(self.replaced_share * num_generations)
        if most == 0:
            raise ValueError(
                f"algorithm.hints.replaced_share is {self.replaced_share} of {num_generations} generations, less than "
                "one completion; raise it or rollout.num_generations"
            )
        return most
