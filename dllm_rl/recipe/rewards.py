"""The reward functions of a recipe, put together. Does not import torch."""

from __future__ import annotations

from pathlib import Path

from dllm_rl.recipe.schema import RewardSection
from dllm_rl.rollouts.rewards import RewardPanel


def make_panel(section: RewardSection, base: Path) -> RewardPanel:
    """The panel that a recipe in the folder `base` describes.

    Raises:
        RecipeError: a function is not there, or the settings exclude each other.
    """
    return RewardPanel.load(
        section.functions,
        base,
        weights=section.weights,
        time_limit=section.time_limit,
        gates=section.gates,
        speed_exponent=section.speed_exponent,
        normalization=section.normalization,
        workers=section.workers,
    )
