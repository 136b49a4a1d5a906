"""The corruptors a recipe can name. Settings only; `diffusion.corruption` is imported when built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from dllm_rl.diffusion.corruption import Corruptor


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class FixedCountSettings(_Settings):
    """Hide exactly l of n scored tokens, l uniform; the low-variance default."""

    type: Literal["fixed_count"] = "fixed_count"
    stratified: bool = True
    """Spread the levels of a sequence's draws evenly over 1..n; each stays uniform by itself."""

    def build(self) -> Corruptor:
        from dllm_rl.diffusion import corruption

        return corruption.FixedCount(stratified=self.stratified)


class BernoulliSettings(_Settings):
    """Hide each scored token with probability t, weight 1/t: the form LLaDA was trained with."""

    type: Literal["bernoulli"] = "bernoulli"
    floor: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """Lowest level; a bias of that order, without which the variance is infinite."""

    def build(self) -> Corruptor:
        from dllm_rl.diffusion import corruption

        return corruption.Bernoulli(floor=self.floor)


class AntitheticSettings(_Settings):
    """Pairs of draws at levels u and 1 - u. Needs an even number of draws."""

    type: Literal["antithetic"] = "antithetic"

    def build(self) -> Corruptor:
        from dllm_rl.diffusion import corruption

        return corruption.AntitheticLevels()


class ComplementarySettings(_Settings):
    """Pairs of draws that hide a set and its complement, so that a pair scores every token once (coupled-GRPO)."""

    type: Literal["complementary"] = "complementary"

    def build(self) -> Corruptor:
        from dllm_rl.diffusion import corruption

        return corruption.Complementary()


class FullyHiddenSettings(_Settings):
    """One-step estimate of d1: the whole completion hidden, each prompt token hidden with a small probability."""

    type: Literal["fully_hidden"] = "fully_hidden"
    prompt_noise: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Probability that a prompt token is hidden; it is not scored there."""

    def build(self) -> Corruptor:
        from dllm_rl.diffusion import corruption

        return corruption.FullyHidden(prompt_noise=self.prompt_noise)


ElboCorruption = FixedCountSettings | BernoulliSettings | AntitheticSettings | ComplementarySettings
"""Corruptors whose weighted sum is an unbiased estimate of the ELBO (Bernoulli: up to its floor)."""

AnyCorruption = ElboCorruption | FullyHiddenSettings


def check_draws(corruption: AnyCorruption, num_draws: int) -> None:
    """Refuse a number of draws that a corruptor cannot make.

    Raises:
        ValueError: an odd number for one that draws in pairs.
    """
    if isinstance(corruption, AntitheticSettings | ComplementarySettings) and num_draws % 2:
        raise ValueError(f"num_draws is {num_draws}, but {corruption.type} draws in pairs; give an even number")
