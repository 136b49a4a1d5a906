"""Whether a sampler reads its order from the tokens drawn, as published, or from the predictions alone."""

from __future__ import annotations

from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.score import DrawnProbability, MaxProbability, Score

ORDERS = ("drawn", "max")


def refuse_unknown_order(order: str) -> None:
    """Check an option of a preset.

    Raises:
        RecipeError: it is not one of `ORDERS`.
    """
    if order not in ORDERS:
        raise RecipeError(
            f"order is {order!r}; expected 'drawn' (by the probability of the token drawn, as published) or 'max' (by "
            "the largest probability: tokens are drawn only where they are written, for reinforcement learning)"
        )


def score_by(order: str, transform: Transform) -> Score:
    """The probability at temperature 1, of the token drawn or of the likeliest token that may be drawn."""
    if order == "max":
        return MaxProbability(Transform(forbidden_ids=transform.forbidden_ids))
    return DrawnProbability()


def refuse_improbable(option: str, value: float) -> None:
    """Check that an option is a probability that can be asked for.

    Raises:
        RecipeError: it is not above 0 and at most 1.
    """
    if not 0 < value <= 1:
        raise RecipeError(f"{option} is {value}; expected a probability above 0, at most 1")
