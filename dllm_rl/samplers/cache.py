"""Caches: which columns of the canvas a forward recomputes, the others keeping the keys and values of their last visit.

In a model that attends both ways every token changes the keys and values of every other, so leaving columns out is an
approximation; rollouts made so are marked "approximate_cache", and `samplers.drift` measures what it cost. In a
block-causal model finished blocks do not see later ones, and leaving them out is exact.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dllm_rl.diffusion.denoiser import CachingDenoiser, DiffusionSpec, KeyValues
from dllm_rl.diffusion.transform import guide
from dllm_rl.errors import ModelContractError, RecipeError
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.network import scheduled, unfinished


@runtime_checkable
class CachePolicy(Protocol):
    """Which columns to recompute. A column that was never visited is always recomputed before it is looked at, and one
    whose token was revised when it is next.
    """

    exact: ClassVar[bool]
    """True for a policy that is exact on block-causal models, and refused on others."""

    def refresh(self, canvas: Canvas, changed: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
        """Columns to recompute; must hold the eligible ones.

        Args:
            changed: columns whose token is not the one they had at their last visit, or that were never visited.
        """
        ...


def _between(canvas: Canvas, first: Int64[Tensor, " B"], end: Int64[Tensor, " B"]) -> Bool[Tensor, "B N"]:
    """Columns of the completion positions from `first` to before `end`; negative positions reach into the prompt."""
    position = torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device) - canvas.prompt_length
    return (position >= first[:, None]) & (position < end[:, None])


def _block_end(canvas: Canvas) -> Int64[Tensor, " B"]:
    return (canvas.block_of <= canvas.block[:, None]).sum(dim=1)


@dataclass(frozen=True, slots=True)
class Prefix:
    """Everything when a block is opened, then the block and what follows it.

    Source: Wu et al. (Fast-dLLM), https://arxiv.org/abs/2505.22618, section 3.2.
    """

    exact: ClassVar[bool] = False

    def refresh(self, canvas: Canvas, changed: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
        length = torch.full_like(canvas.turn, canvas.hidden.shape[1])
        return _between(canvas, canvas.block_start, length) | changed | (canvas.turn == 0)[:, None]


@dataclass(frozen=True, slots=True)
class Dual:
    """Everything when a block is opened, then the block only.

    Source: Wu et al. (Fast-dLLM), https://arxiv.org/abs/2505.22618, section 3.2.
    """

    exact: ClassVar[bool] = False

    def refresh(self, canvas: Canvas, changed: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
        block = _between(canvas, canvas.block_start, _block_end(canvas))
        return block | changed | (canvas.turn == 0)[:, None]


@dataclass(frozen=True, slots=True)
class Vicinity:
    """Everything during a block's first steps, then the block and some columns around it.

    Source: dInfer, https://arxiv.org/abs/2510.08666 (vicinity refresh); the defaults are those of its serving mode.
    """

    before: int = 16
    after: int = 16
    warmup: int = 4
    """Steps of each block that recompute everything; at least one."""

    exact: ClassVar[bool] = False

    def refresh(self, canvas: Canvas, changed: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
        near = _between(canvas, canvas.block_start - self.before, _block_end(canvas) + self.after)
        return near | changed | (canvas.turn < max(1, self.warmup))[:, None]


@dataclass(frozen=True, slots=True)
class DelayedKV:
    """Every so many steps everything, else the hidden tokens and those written in the last step.

    A token's keys and values are kept from one step after it was written, when they stop changing fast.

    Source: Ma et al. (dKV-Cache-Decode), https://arxiv.org/abs/2505.15781, section 3.2; 8 steps for LLaDA.
    """

    every: int = 8

    exact: ClassVar[bool] = False

    def refresh(self, canvas: Canvas, changed: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
        again = canvas.forwards % self.every == 0
        return canvas.columns(canvas.hidden | canvas.window) | changed | again[:, None]


@dataclass(frozen=True, slots=True)
class Block:
    """For block-causal models, and exact there: the open block, and earlier ones from the first that changed.

    A finished block is visited once more, with its final tokens, in the forward that opens the next one.
    """

    size: int
    """Of the model's blocks, counted from the prompt's first token."""

    exact: ClassVar[bool] = True

    def refresh(self, canvas: Canvas, changed: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
        attended = torch.ones_like(changed) if canvas.attend is None else canvas.attend
        block = (attended.cumsum(dim=1) - 1) // self.size
        first_open = (canvas.prompt_length + canvas.block_start)[:, None]
        current = block.gather(1, first_open.clamp(max=block.shape[1] - 1))
        dirty = torch.where(changed, block, current).amin(dim=1, keepdim=True)
        return (block >= torch.minimum(dirty, current)) & (block <= current)


def make_policy(name: str, spec: DiffusionSpec) -> CachePolicy | None:
    """The policy called `name`: "none", "prefix", "dual", "dkv", "vicinity" or "block".

    Raises:
        RecipeError: there is no such policy, or it is not for such a model.
    """
    known: dict[str, CachePolicy | None] = {
        "none": None,
        "prefix": Prefix(),
        "dual": Dual(),
        "dkv": DelayedKV(),
        "vicinity": Vicinity(),
    }
    if spec.block_size is not None:
        known["block"] = Block(spec.block_size)
    if name not in known:
        reason = ", which is for block-causal models and this one is not" if name == "block" else ""
        raise RecipeError(f"cache is {name!r}{reason}; expected one of {', '.join(known)}")
    return known[name]


class Cached:
    """A network that recomputes the columns a policy names. See `network.Network`."""

    def __init__(self, denoiser: CachingDenoiser, policy: CachePolicy, cfg_scale: float, shape: torch.Size) -> None:
        self.denoiser, self.policy, self.cfg_scale = denoiser, policy, cfg_scale
        self._live = torch.arange(shape[0], device=denoiser.device)
        self._visited = torch.full(shape, -1, dtype=torch.int64, device=denoiser.device)
        self._caches: list[KeyValues] = [denoiser.open_cache(*shape) for _ in range(2 if cfg_scale else 1)]

    def logits(self, canvas: Canvas, positions: Bool[Tensor, "B L"]) -> Float[Tensor, "T V"]:
        answers = self._answers(canvas, positions)
        return guide(answers[0], answers[1], self.cfg_scale) if self.cfg_scale else answers[0]

    def pair(self, canvas: Canvas, positions: Bool[Tensor, "B L"]) -> tuple[Float[Tensor, "T V"], Float[Tensor, "T V"]]:
        seeing, blind = self._answers(canvas, positions)
        return seeing, blind

    def schedule(self, features: Float64[Tensor, "B F"], actions: int) -> Float[Tensor, "B A"]:
        return scheduled(self.denoiser, features, actions)

    def _answers(self, canvas: Canvas, positions: Bool[Tensor, "B L"]) -> list[Float[Tensor, "T V"]]:
        """With the prompt, and without it if there is a second cache."""
        live, attend, where = unfinished(canvas, positions)
        self._keep(live)
        rows = canvas.select(live)
        seen = torch.ones_like(where) if attend is None else attend
        refresh = (self.policy.refresh(rows, (rows.tokens != self._visited) & seen) | where) & seen
        self._visited = torch.where(refresh, rows.tokens, self._visited)
        inputs = [rows.tokens, rows.without_prompt(self.denoiser.spec.mask_id)][: len(self._caches)]
        return [
            self.denoiser.logits_through(cache, tokens, refresh, where, attend)
            for cache, tokens in zip(self._caches, inputs, strict=True)
        ]

    def plan(
        self, canvas: Canvas, positions: Bool[Tensor, "B L"], open: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "T V"], Float[Tensor, " T"]]:
        raise ModelContractError("a planner head cannot be read through a cache; set cache to 'none'")

    def shadow(
        self, canvas: Canvas, positions: Bool[Tensor, "B L"], shadowed: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "T V"], Float[Tensor, "U V"]]:
        raise ModelContractError("a shadow cannot be cast through a cache; set cache to 'none'")

    def select(self, index: Int64[Tensor, " R"]) -> Cached:
        kept = torch.isin(index, self._live)
        place = torch.searchsorted(self._live, index[kept])
        other = copy.copy(self)
        other._live, other._visited = kept.nonzero()[:, 0], self._visited[place]
        other._caches = [cache.select(place) for cache in self._caches]
        return other

    def _keep(self, live: Int64[Tensor, " R"]) -> None:
        """Drop what is kept of rows that are finished."""
        if len(live) < len(self._live):
            place = torch.searchsorted(self._live, live)
            self._live, self._visited = live, self._visited[place]
            self._caches = [cache.select(place) for cache in self._caches]
