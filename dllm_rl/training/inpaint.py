"""Groups that fail are rolled out again with hints, and correct completions replace some of the wrong ones (IGPO)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Int64
from torch import Tensor

from dllm_rl.algorithms.hints import HintSettings, StretchedPlacement
from dllm_rl.errors import RecipeError
from dllm_rl.objectives.reduce import Mean, mean_of
from dllm_rl.rng import fold, uniform
from dllm_rl.rollouts.hints import AtOffsets, Hint, HintRule, Placement, Stretched, Trace, draw_hint
from dllm_rl.training.data import PromptRow
from dllm_rl.training.judged import Judged

RollOut = Callable[[list[PromptRow], Int64[Tensor, " B"], list[Hint]], Judged]
"""Writes and judges a completion for each row, around its template."""


@dataclass(frozen=True, slots=True)
class Inpainter:
    """Rescues groups without a correct completion; every other group stays as it is.

    What a group becomes depends on its rows and keys alone, so that it is the same on any layout.
    """

    rule: HintRule
    gen_length: int
    num_generations: int
    most_replaced: int
    correct_reward: str
    """Name, in the judgements, of the function that tells what is correct."""
    correct_value: float
    """Least value of that function for a correct completion; where the function does not apply, none is."""

    def augment(
        self, originals: Judged, keys: Int64[Tensor, " B"], roll_out: RollOut
    ) -> tuple[Judged, dict[str, Mean]]:
        """The groups with up to `most_replaced` completions of each failed one replaced by correct hinted ones.

        Args:
            originals: whole groups, one after the other.
            keys: one per original. Its hint, its hinted completion and what is replaced are folded from them.
            roll_out: called at most once, with the rows of the failed groups.

        Returns:
            As many completions as there were, and numbers of the same names whatever happened.
        """
        size = self.num_generations
        failed = ~torch.tensor(self._correct(originals)).view(-1, size).any(1)
        again = failed.repeat_interleave(size).nonzero()[:, 0].tolist()
        stands: list[int] = list(range(len(originals)))
        candidates: Judged | None = None
        if again:
            candidates = self._hinted([originals.rows[row] for row in again], keys[again], roll_out)
            correct = self._correct(candidates)
            for place, first in enumerate(again[::size]):
                found = [c for c in range(place * size, (place + 1) * size) if correct[c]][: self.most_replaced]
                wrong = uniform(fold(keys[first], "replaced"), size).argsort().tolist()
                for slot, candidate in zip(wrong, found, strict=False):  # as many as were found
                    stands[first + slot] = len(originals) + candidate
        augmented = originals if candidates is None else (originals + candidates).select(stands)
        replaced = torch.tensor(stands) >= len(originals)
        return augmented, self._metrics(failed, replaced, candidates)

    def _hinted(self, rows: list[PromptRow], keys: Int64[Tensor, " C"], roll_out: RollOut) -> Judged:
        hints = [
            draw_hint(_trace_of(row), self.gen_length, key, self.rule)
            for row, key in zip(rows, fold(keys, "hint").cpu(), strict=True)
        ]
        return roll_out(rows, fold(keys, "hinted rollout"), hints)

    def _correct(self, judged: Judged) -> list[bool]:
        values = judged.per_function[self.correct_reward]
        return [value is not None and value >= self.correct_value for value in values]

    def _metrics(self, failed: Tensor, replaced: Tensor, candidates: Judged | None) -> dict[str, Mean]:
        rescued = replaced.view(-1, self.num_generations).any(1)
        none = torch.zeros(0, dtype=torch.float64)
        correct = none if candidates is None else torch.tensor(self._correct(candidates)).double()
        given = none if candidates is None else candidates.trajectory.given.cpu().double()
        return {
            "inpaint/failed_groups": mean_of(failed.double()),
            "inpaint/rescued_groups": mean_of(rescued[failed].double()),
            "inpaint/replaced": mean_of(replaced.double()),
            "inpaint/correct_candidates": mean_of(correct),
            "inpaint/hint_share": mean_of(given),
        }


def make_inpainter(
    settings: HintSettings, functions: Sequence[str], names: Sequence[str], *, num_generations: int, gen_length: int
) -> Inpainter:
    """The inpainter of a recipe.

    Args:
        functions: the reward functions as the recipe writes them.
        names: what judgements call them.

    Raises:
        RecipeError: no hint has room in a completion.
    """
    given, place = settings.placement, cast(Placement, AtOffsets())
    if isinstance(given, StretchedPlacement):
        place = Stretched(given.free_tail, given.max_stretch, given.max_gap)
    if place.room(gen_length) < 1:
        raise RecipeError(
            f"algorithm.hints.placement leaves no room for hints in rollout.gen_length {gen_length}; lower free_tail"
        )
    return Inpainter(
        rule=HintRule((settings.min_chunk, settings.max_chunk), (settings.min_share, settings.max_share), place),
        gen_length=gen_length,
        num_generations=num_generations,
        most_replaced=settings.most_replaced(num_generations),
        correct_reward=names[settings.correct_index(functions)],
        correct_value=settings.correct_value,
    )


def _trace_of(row: PromptRow) -> Trace:
    assert row.trace is not None, "rows of a run with hints have traces"
    return row.trace
