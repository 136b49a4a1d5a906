"""Samplers whose order is blind to the draws, and that have no other idea."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import Constant, Even, MaskRatio, revealed_share
from dllm_rl.samplers.random_coins import Coins
from dllm_rl.samplers.random_rules import Annealed, PlackettLuce
from dllm_rl.samplers.score import Indifferent, Margin, MaxProbability, NegativeEntropy
from dllm_rl.samplers.select import TopK, UniformSubset


@dataclass(frozen=True, slots=True)
class TopMargin:
    """Positions whose likeliest token leads by most. Its likelihood is that of the tokens alone.

    Source: Kim et al., https://arxiv.org/abs/2502.06768, section 4.1.
    """

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks = request.blocks(spec)
        return Sampler(request.transform(spec), Margin(), TopK(Even(request.steps_per_block(blocks))), blocks)


@dataclass(frozen=True, slots=True)
class LowEntropy:
    """Positions whose prediction has the least entropy. Its likelihood is that of the tokens alone.

    Source: a baseline of many papers, here as in PC-Sampler's generate_with_entropy, https://arxiv.org/abs/2508.13021;
    with blocks, which that code forgets.
    """

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks = request.blocks(spec)
        return Sampler(request.transform(spec), NegativeEntropy(), TopK(Even(request.steps_per_block(blocks))), blocks)


@dataclass(frozen=True, slots=True)
class MaskGit:
    """Few positions first and more later, by confidence with noise that fades.

    Source: Chang et al., https://arxiv.org/abs/2202.04200, section 3.3. Deviation: confidence is that of the likeliest
    token and not of the one drawn, so that the random order is a Plackett-Luce choice and the likelihood exact.
    """

    mode: str = "cosine"
    """How many stay hidden: "linear", "cosine", "log", "exp", or "pow" and an exponent, see `quota.MaskRatio`."""
    choice_temperature: float = 4.5
    """Of the noise, before the first step; 0 is none."""

    def __post_init__(self) -> None:
        if not 0 <= self.choice_temperature < float("inf"):
            raise RecipeError(f"choice_temperature is {self.choice_temperature}; expected a finite number, at least 0")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks = request.blocks(spec)
        steps = request.steps_per_block(blocks)
        select = PlackettLuce(MaskRatio(self.mode, steps), Annealed(self.choice_temperature, steps))
        return Sampler(request.transform(spec), MaxProbability(), select, blocks)


@dataclass(frozen=True, slots=True)
class FirstHitting:
    """One position at a time, all equally likely: the reverse process itself, with no forward wasted.

    Source: Zheng et al., https://arxiv.org/abs/2409.02908, section 4. The times of its events matter to networks that
    read the time, of which there are none here.
    """

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        request.refuse_steps("first_hitting")
        return Sampler(request.transform(spec), Indifferent(), UniformSubset(Constant(1)), request.blocks(spec))


@dataclass(frozen=True, slots=True)
class AncestralSteps:
    """The reverse process in steps of equal time: each hidden position is written by a coin of its own.

    A step may write nothing, and its forward was then for nothing. In the limit of many steps "first_hitting" draws
    from the same law with one forward per token.

    Source: Sahoo et al. (MDLM), https://arxiv.org/abs/2406.07524, section 3.2. Times end at 0, where all is written;
    the code stops a little before and makes one more forward.
    """

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks = request.blocks(spec)
        steps = request.steps_per_block(blocks)
        coins = Coins(tuple(revealed_share(torch.arange(steps), steps, eps=0.0).tolist()))
        return Sampler(request.transform(spec), Indifferent(), coins, blocks)
