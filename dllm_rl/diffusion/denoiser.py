"""What a diffusion language model is to the rest of the library: constants of its noise and a protocol to score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm_rl.diffusion.transform import Transform


@dataclass(frozen=True, slots=True)
class DiffusionSpec:
    """Constants that decoding and likelihoods need to know of a model."""

    mask_id: int
    """Id of the token that stands for "not yet written"."""
    eos_ids: tuple[int, ...] = ()
    """Ids that end a completion; the first is also the padding id."""
    logit_shift: int = 0
    """1 when the network's output at position i predicts token i + 1 (Dream). `Denoiser` hides it."""
    block_size: int | None = None
    """Length of the blocks of a block-causal model; None for a fully bidirectional one."""
    noise: Literal["mask", "uniform"] = "mask"
    forbidden_ids: tuple[int, ...] = ()
    """Ids that must never be drawn: the mask and ids that the tokenizer does not have."""


class TokenScores(NamedTuple):
    """What one forward tells of the tokens asked for. Zero where nothing was asked."""

    logp: Float[Tensor, "B N"]
    """Log-probability of the token, nats."""
    entropy: Float[Tensor, "B N"] | None
    """Entropy of the distribution the token was scored under, nats; None unless asked for."""


@runtime_checkable
class Denoiser(Protocol):
    """A model that gives, for every position of a canvas, a distribution over the clean token at that same position."""

    @property
    def spec(self) -> DiffusionSpec: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def max_positions(self) -> int | None:
        """The longest canvas the model was built for; None if any length will do."""
        ...

    def logits_at(
        self, canvas: Int[Tensor, "B N"], where: Bool[Tensor, "B N"], attend: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "T V"]:
        """Float32 logits at the T true positions of `where`, in row-major order. Position ids count attended tokens."""
        ...

    def score(
        self,
        canvas: Int[Tensor, "B N"],
        tokens: Int[Tensor, "B N"],
        where: Bool[Tensor, "B N"],
        attend: Bool[Tensor, "B N"] | None = None,
        transform: Transform | None = None,
        *,
        prompt: Bool[Tensor, "B N"] | None = None,
        entropy: bool = False,
    ) -> TokenScores:
        """Log-probabilities of `tokens` at `where`; differentiable, memory-lean.

        Args:
            transform: the distribution to score under; None is the full softmax at temperature 1.
            prompt: positions that classifier-free guidance hides; needed only when the transform guides.
        """
        ...
