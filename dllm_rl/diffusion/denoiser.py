"""What a diffusion language model is to the rest of the library: constants of its noise and a protocol to score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
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
    plan: Float[Tensor, "B N"] | None = None
    """What the planner head says of the positions it was asked about; None unless asked."""


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
        open: Bool[Tensor, "B N"] | None = None,
        temperature: Float64[Tensor, " B"] | None = None,
        cfg_scale: Float64[Tensor, " B"] | None = None,
    ) -> TokenScores:
        """Log-probabilities of `tokens` at `where`; differentiable, memory-lean.

        Args:
            transform: the distribution to score under; None is the full softmax at temperature 1.
            prompt: positions that classifier-free guidance hides; needed only where something guides.
            open: positions to ask the planner head about, in the same forward.
            temperature: of each row's distribution, in place of the transform's.
            cfg_scale: strength of each row's guidance, in place of the transform's; 0 gives the unguided row.
        """
        ...


@runtime_checkable
class KeyValues(Protocol):
    """Keys and values of every column of a canvas, each as of the last forward that visited it."""

    def select(self, index: Int64[Tensor, " R"]) -> KeyValues:
        """A cache of its own with rows `index`, repeats allowed: a fork, or what is left when rows are finished."""
        ...


@runtime_checkable
class CachingDenoiser(Denoiser, Protocol):
    """A denoiser that can recompute some columns of a canvas and read the others as they were at their last visit.

    Not a prefix that grows (forward, extend, crop): here the right end of a canvas is there from the start, and any
    column may be renewed at any time.
    """

    def open_cache(self, rows: int, columns: int) -> KeyValues:
        """An empty cache for canvases of this shape. Holds keys and values of every layer, rows * columns each."""
        ...

    def logits_through(
        self,
        cache: KeyValues,
        canvas: Int[Tensor, "B N"],
        refresh: Bool[Tensor, "B N"],
        where: Bool[Tensor, "B N"],
        attend: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "T V"]:
        """Float32 logits at the T true positions of `where`, in row-major order, running the columns of `refresh` only.

        The columns of `refresh`, and before each position of `where` the one that a logit shift reads, look at all
        attended columns: at each other as they are in `canvas`, at the rest as of their last visit. Their new keys and
        values stay in the cache. Refreshing everything equals `logits_at`; a block-causal model may leave out finished
        blocks that were refreshed after their last token, and is exact still; for a bidirectional one leaving out
        anything is an approximation.

        Args:
            refresh: columns to recompute; rows may differ in which and in how many.
            where: positions to answer for; must lie within `refresh`.

        Raises:
            ModelContractError: when a column that would be looked at was never visited, or `where` leaves `refresh`.
        """
        ...


@runtime_checkable
class PlanningDenoiser(Denoiser, Protocol):
    """A denoiser with a planner head: a number per position that says whether it is time to write there."""

    def plan_at(
        self,
        canvas: Int[Tensor, "B N"],
        where: Bool[Tensor, "B N"],
        attend: Bool[Tensor, "B N"] | None = None,
        *,
        open: Bool[Tensor, "B N"] | None = None,
    ) -> tuple[Float[Tensor, "T V"], Float[Tensor, " T"]]:
        """Token logits and planner logits, of one forward, at the T true positions of `where` in row-major order.

        Args:
            open: positions that may be written now, which the planner is told; None: those of `where`.
        """
        ...


@runtime_checkable
class SchedulingDenoiser(Denoiser, Protocol):
    """A denoiser with a schedule head: how to take the next step, from statistics of the present one."""

    def schedule_at(self, features: Float[Tensor, "R F"]) -> Float[Tensor, "R A"]:
        """Means of the schedule policy's actions, float32; differentiable."""
        ...


@runtime_checkable
class PairwiseDenoiser(Denoiser, Protocol):
    """A denoiser that can be told, for every pair of positions, whether one may look at the other."""

    def logits_seeing(
        self,
        canvas: Int[Tensor, "B N"],
        where: Bool[Tensor, "B N"],
        sees: Bool[Tensor, "B N N"],
        positions: Int64[Tensor, "B N"],
    ) -> Float[Tensor, "T V"]:
        """Float32 logits at the T true positions of `where`, in row-major order.

        Args:
            sees: [row, who looks, at whom]; nothing else is added to it.
            positions: position ids, which several columns may share.

        Raises:
            ModelContractError: the model predicts each token from the position before, which two columns may share.
        """
        ...
