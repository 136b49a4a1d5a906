"""Scores of PC-Sampler: what is written early is near the prompt, and says something."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import DataError, RecipeError
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.score import EVERYTHING


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """How often each token occurs in ordinary text, whatever stands around it.

    Count it in neutral text: the published one includes the texts of the benchmarks that it was evaluated on.
    """

    ids: Int64[Tensor, " M"]
    """The tokens that occur."""
    log_frequency: Float64[Tensor, " M"]
    log_unseen: float
    """Of every other token."""

    @classmethod
    def from_probabilities(cls, probability: Mapping[int, float], unseen: float) -> Background:
        """From the probability of each token that occurs, and that of any other one.

        Raises:
            DataError: a probability is not above 0 and at most 1, or an id is negative.
        """
        for token, value in (*probability.items(), ("unseen", unseen)):
            if not 0 < value <= 1 or (isinstance(token, int) and token < 0):
                raise DataError(f"background frequency of token {token} is {value}; expected above 0, at most 1")
        frequency = torch.tensor(list(probability.values()), dtype=torch.float64)
        return cls(torch.tensor(list(probability), dtype=torch.int64), frequency.log(), math.log(unseen))

    @classmethod
    def from_counts(cls, count: Mapping[int, int], total: int) -> Background:
        """From how often each token was counted among `total`; one that was not counts as seen once.

        Raises:
            DataError: a count is not between 1 and `total`.
        """
        if total < 1:
            raise DataError(f"background counted from {total} tokens; expected at least 1")
        return cls.from_probabilities({token: number / total for token, number in count.items()}, 1 / total)

    @classmethod
    def load(cls, path: str) -> Background:
        """From a file in PC-Sampler's format: {"num_token": total, "p_baseline_dict": {"id": count}}.

        Raises:
            DataError: there is no such file, it is not in this format, or a count is out of range.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            counts = {int(token): int(number) for token, number in content["p_baseline_dict"].items()}
            total = int(content["num_token"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"background {path}: {type(error).__name__}: {error}; expected a JSON file "
                '{"num_token": total, "p_baseline_dict": {"id": count}}'
            ) from None
        return cls.from_counts(counts, total)

    def log_frequencies(self, like: Float[Tensor, "T V"]) -> Float[Tensor, " V"]:
        """Of the whole vocabulary of the logits `like`.

        Raises:
            DataError: it was counted with a larger vocabulary.
        """
        size = like.shape[-1]
        if len(self.ids) and int(self.ids.max()) >= size:
            raise DataError(f"background has token {int(self.ids.max())} and the model {size} tokens; count it anew")
        table = torch.full((size,), self.log_unseen, dtype=torch.float64)
        return table.index_put((self.ids,), self.log_frequency).to(like)


def log_calibrated(log_probs: Float[Tensor, "T V"], background: Background, ceiling: float) -> Float[Tensor, "T V"]:
    """Log of min(-p log f, ceiling): a confident token counts for less the more common it is.

    Source: Huang et al. (PC-Sampler), https://arxiv.org/abs/2508.13021, equations 6 and 7, without the 1e-9 that the
    code adds to f.
    """
    surprise = (-background.log_frequencies(log_probs)).log()
    return (log_probs + surprise).clamp(max=math.log(ceiling))


@dataclass(frozen=True, slots=True)
class PositionAware:
    """Log of exp(-decay * i) * min(-p log f, ceiling) of the token drawn at position i. Not a log-probability.

    In logarithms it does not underflow far from the prompt, where the code's scores are all 0. Counting i from the
    block, as the code does, shifts all scores of a block alike and orders them as counting from the prompt does.

    Source: Huang et al. (PC-Sampler), https://arxiv.org/abs/2508.13021, equation 8.

    Raises:
        RecipeError: a decay that is negative or a ceiling that is not positive.
    """

    background: Background
    decay: float
    """lambda of the paper; 0 is no preference of positions."""
    ceiling: float
    """alpha of the paper."""
    distribution: Transform = EVERYTHING

    def __post_init__(self) -> None:
        if not 0 <= self.decay < math.inf:
            raise RecipeError(f"lambd is {self.decay}; expected a finite number, at least 0")
        if not 0 < self.ceiling < math.inf:
            raise RecipeError(f"alpha is {self.ceiling}; expected a finite number above 0")

    def of_tokens(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, "T V"]:
        score = log_calibrated(self.distribution.log_probs(proposal.logits), self.background, self.ceiling)
        return score - self.decay * proposal.index[:, None].to(score.dtype)


@dataclass(frozen=True, slots=True)
class LinearPosition:
    """(1 - weight) * c + weight * (L - i) / L, of the likeliest token, between 0 and 1: calibrated confidence against a
    prior that falls linearly. c is min(-p log f, ceiling), scaled so that the open positions reach from 0 to 1.

    Position i and length L are those within the block. Scaling makes a score depend on all positions, so of draws it
    would have no likelihood: it reads the token that is likeliest instead, which is the same at temperature 0. Where
    all open positions are alike c is 0.

    Source: PC-Sampler's generate_with_linear_position, https://github.com/NEUIR/PC-Sampler, an ablation of
    https://arxiv.org/abs/2508.13021. The code scales over written positions too, with the probability of one token and
    the frequency of another.

    Raises:
        RecipeError: a weight outside [0, 1] or a ceiling that is not positive.
    """

    background: Background
    weight: float
    """lambda of the code."""
    ceiling: float
    """alpha of the code."""
    permitted: Transform
    """What tokens are drawn from: the likeliest token is one that can be."""
    distribution: Transform = EVERYTHING

    reads_plan: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise RecipeError(f"lambd is {self.weight}; expected a number from 0 to 1")
        if not 0 < self.ceiling < math.inf:
            raise RecipeError(f"alpha is {self.ceiling}; expected a finite number above 0")

    def of_positions(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, " T"]:
        scaled = _scaled_by_row(proposal.per_position(self._calibrated), proposal.row, len(canvas.keys))
        length = (canvas.block_of == canvas.block[:, None]).sum(dim=1)[proposal.row]
        left = length - (proposal.index - canvas.block_start[proposal.row])
        return (1 - self.weight) * scaled + self.weight * left.to(scaled.dtype) / length

    def _calibrated(self, logits: Float[Tensor, "T V"]) -> Float[Tensor, " T"]:
        likeliest = self.permitted.permitted(logits).argmax(dim=-1, keepdim=True)
        score = log_calibrated(self.distribution.log_probs(logits), self.background, self.ceiling)
        return score.gather(-1, likeliest)[:, 0].exp()


def _scaled_by_row(value: Float[Tensor, " T"], row: Int64[Tensor, " T"], num_rows: int) -> Float[Tensor, " T"]:
    """Values of each row, moved and scaled so that they reach from 0 to 1; 0 where they are all alike."""
    empty = torch.zeros(num_rows, dtype=value.dtype, device=value.device)
    low = empty.scatter_reduce(0, row, value, "amin", include_self=False)[row]
    high = empty.scatter_reduce(0, row, value, "amax", include_self=False)[row]
    return torch.where(high > low, (value - low) / (high - low), 0.0)
