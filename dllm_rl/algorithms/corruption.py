"""The corruptors a recipe can name. Settings only; `diffusion.corruption` is imported when built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from torch import Tensor

    from dllm_rl.algorithms.base import Batch
    from dllm_rl.diffusion.corruption import Corruptor


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    draws_per_estimate: ClassVar[int] = 1
    """Consecutive draws that make one independent estimate; the corruptor's own."""


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

    draws_per_estimate: ClassVar[int] = 2
    type: Literal["antithetic"] = "antithetic"

    def build(self) -> Corruptor:
        from dllm_rl.diffusion import corruption

        return corruption.AntitheticLevels()


class ComplementarySettings(_Settings):
    """Pairs of draws that hide a set and its complement, so that a pair scores every token once (coupled-GRPO)."""

    draws_per_estimate: ClassVar[int] = 2
    type: Literal["complementary"] = "complementary"

    def build(self) -> Corruptor:
        from dllm_rl.diffusion import corruption

        return corruption.Complementary()


class BalancedSettings(_Settings):
    """Stratified fixed counts that hide next what was hidden least: the least variance from two draws on."""

    type: Literal["balanced"] = "balanced"

    def build(self) -> Corruptor:
        from dllm_rl.diffusion import corruption

        return corruption.Balanced()


class FullyHiddenSettings(_Settings):
    """One-step estimate of d1: the whole completion hidden, each prompt token hidden with a small probability."""

    type: Literal["fully_hidden"] = "fully_hidden"
    prompt_noise: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Probability that a prompt token is hidden; it is not scored there."""

    def build(self) -> Corruptor:
        from dllm_rl.diffusion import corruption

        return corruption.FullyHidden(prompt_noise=self.prompt_noise)


ElboCorruption = FixedCountSettings | BernoulliSettings | AntitheticSettings | ComplementarySettings | BalancedSettings
"""Corruptors whose weighted sum is an unbiased estimate of the ELBO (Bernoulli: up to its floor)."""

AnyCorruption = ElboCorruption | FullyHiddenSettings


def check_draws(corruption: AnyCorruption, num_draws: int) -> None:
    """Refuse a number of draws that a corruptor cannot make.

    Raises:
        ValueError: an odd number for one that draws in pairs.
    """
    if num_draws % corruption.draws_per_estimate:
        raise ValueError(f"num_draws is {num_draws}, but {corruption.type} draws in pairs; give an even number")


def estimates_of(corruption: AnyCorruption, batch: Batch, logp: Float[Tensor, "R N"]) -> Float64[Tensor, "B M"]:
    """Estimates of each sequence's log-probability, nats: one per draw, or per pair if it is pairs that are drawn."""
    from dllm_rl.diffusion.likelihood import elbo_draws

    draws = elbo_draws(logp, batch.views, len(batch.sequences))
    return draws.view(len(draws), -1, corruption.draws_per_estimate).mean(-1)
