"""How many positions a step writes, when that is decided beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from dllm_rl.errors import RecipeError
from dllm_rl.samplers.canvas import Canvas


@runtime_checkable
class Quota(Protocol):
    """A number of positions for each row, from where the row stands. 0 is allowed as long as later turns make it up."""

    def __call__(self, canvas: Canvas) -> Int64[Tensor, " B"]: ...


@dataclass(frozen=True, slots=True)
class Even:
    """An even split of a block over its steps, the remainder on the first steps.

    Source: Nie et al., https://arxiv.org/abs/2502.09992, get_num_transfer_tokens.
    """

    steps: int
    """Of each block."""

    def __call__(self, canvas: Canvas) -> Int64[Tensor, " B"]:
        return canvas.opening // self.steps + (canvas.turn < canvas.opening % self.steps)


@dataclass(frozen=True, slots=True)
class Constant:
    """The same number at every step."""

    count: int

    def __call__(self, canvas: Canvas) -> Int64[Tensor, " B"]:
        return torch.full_like(canvas.turn, self.count)


@dataclass(frozen=True, slots=True)
class ShareOfOpen:
    """So many in ten of the open positions, rounded down, but within two bounds.

    Source: WINO's cap, https://github.com/Feng-Hong/WINO-DLLM, LLaDA/decoding.py: 0.7 of them, at least 5, at most 20.
    """

    tenths: int = 7
    least: int = 5
    """With 0 the last position would never be written."""
    most: int = 20

    def __call__(self, canvas: Canvas) -> Int64[Tensor, " B"]:
        share = canvas.eligible.sum(dim=1) * self.tenths // 10  # in whole numbers: 0.7 times 30 is below 21
        return share.clamp(self.least, self.most)


@dataclass(frozen=True, slots=True)
class Ascending:
    """Twice as many at every step: 1, 2, 4, ..., and in the last step whatever is left.

    Counts steps over all blocks, so that `blocks.peel`, which gives every power of 2 that it takes off a block of its
    own, only restricts where they are written.

    Source: Yang et al., https://arxiv.org/abs/2509.23924, "ascending step size".
    """

    steps: int
    """Of all blocks together."""

    def __call__(self, canvas: Canvas) -> Int64[Tensor, " B"]:
        everything = torch.full_like(canvas.forwards, canvas.hidden.shape[1])
        return torch.where(canvas.forwards < self.steps - 1, 2**canvas.forwards, everything)


@dataclass(frozen=True, slots=True)
class MaskRatio:
    """After a share r of a block's steps a ratio of it is hidden, rounded down: the schedules of MaskGIT and others.

    "linear" 1 - r; "cosine" cos(pi r / 2); "pow" and an exponent a, as in "pow2" or "pow0.5", 1 - r^a; "log"
    -log(r) / log(n) and "exp" 1 - n^(r - 1), for n positions. Concave ones write little at first. Some steps may write
    nothing: a forward is made all the same, as published.

    Source: Chang et al. (MaskGIT), https://arxiv.org/abs/2202.04200, section 3.3; counts are those of MDPO,
    https://arxiv.org/abs/2508.13148, get_num_transfer_tokens_maskgit.

    Raises:
        RecipeError: no such mode, or an exponent that is not a positive number.
    """

    mode: str
    steps: int
    """Of each block."""

    def __post_init__(self) -> None:
        if self.mode not in ("linear", "cosine", "log", "exp") and self._exponent is None:
            raise RecipeError(
                f"mode is {self.mode!r}; expected 'linear', 'cosine', 'log', 'exp', or 'pow' and a positive exponent, "
                "as in 'pow2'"
            )

    @property
    def _exponent(self) -> float | None:
        try:
            exponent = float(self.mode.removeprefix("pow"))
        except ValueError:
            return None
        return exponent if self.mode.startswith("pow") and 0 < exponent < float("inf") else None

    def __call__(self, canvas: Canvas) -> Int64[Tensor, " B"]:
        return self._hidden(canvas, canvas.turn) - self._hidden(canvas, canvas.turn + 1)

    def _hidden(self, canvas: Canvas, turns: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
        """Positions left hidden after `turns` steps: all of them before the first, none after the last."""
        n, r = canvas.opening.to(torch.float64), turns.to(torch.float64) / self.steps
        left = (n * self._ratio(r, n).clamp(max=1.0)).floor()
        return torch.where(turns == 0, n, left.where(turns < self.steps, 0.0)).to(torch.int64)

    def _ratio(self, r: Float64[Tensor, " B"], n: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
        if self.mode == "linear":
            return 1 - r
        if self.mode == "cosine":
            return torch.cos(r * torch.pi / 2)
        if self.mode == "log":
            return -r.log2() / n.log2()
        if self.mode == "exp":
            return 1 - torch.exp2(-n.log2() * (1 - r))
        assert self._exponent is not None, "checked when it was made"
        return 1 - r**self._exponent


def revealed_share(turn: Int64[Tensor, "*batch"], steps: int, eps: float) -> Float64[Tensor, "*batch"]:
    """Probability that a position hidden at a step's time t is written by the next, s: 1 - s / t; 1 in the last step.

    Times fall evenly from 1 to `eps` over `steps`.

    Source: Sahoo et al. (MDLM), https://arxiv.org/abs/2406.07524, equation 6, with the linear schedule.
    """
    t = 1 - (1 - eps) * turn.to(torch.float64) / steps
    s = 1 - (1 - eps) * (turn + 1).to(torch.float64) / steps
    return torch.where(turn < steps - 1, 1 - s / t, 1.0)


@dataclass(frozen=True, slots=True)
class TimeFloor:
    """The share of a row's hidden positions that a step of time would reveal, rounded down; in the last step the rest.

    Rounding down means that the first step may write nothing and the last one two: with a step per position it does.

    Source: Ye et al. (Dream), https://arxiv.org/abs/2508.15487, generation_utils.py. The published count is the mean
    over a batch, so rows that stand differently get each other's; here every row has its own.
    """

    steps: int
    """Of each block."""
    eps: float
    """The time at which the last step ends, above 0."""

    def __call__(self, canvas: Canvas) -> Int64[Tensor, " B"]:
        left = canvas.eligible.sum(dim=1)
        return (left * revealed_share(canvas.turn, self.steps, self.eps)).floor().to(torch.int64)
