"""Corruptors: which tokens a view hides and how much each scored token weighs.

To compare models, make the views once and score the same views under each of them. LLaDA 1.5 calls these shared draws
"antithetic sampling"; classical antithetic levels and complementary masks are corruptors of their own here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from dllm_rl.diffusion.views import Sequences, Views
from dllm_rl.rng import fold, uniform


@runtime_checkable
class Corruptor(Protocol):
    """Draws views of sequences. What a row gets depends on its key and its own tokens, not on batch or padding."""

    draws_per_estimate: ClassVar[int]
    """Consecutive draws whose mean is one unbiased estimate: 1, or 2 for corruptors that draw in pairs."""

    def views(self, sequences: Sequences, num_draws: int, keys: Int64[Tensor, " B"], mask_id: int) -> Views:
        """`num_draws` views of each sequence; view r is draw r % num_draws of sequence r // num_draws.

        Raises:
            ValueError: a sequence has no scored position, or the corruptor cannot make that many draws.
        """
        ...


@dataclass(frozen=True, slots=True)
class FixedCount:
    """Hide exactly l of the n scored tokens, l uniform on 1..n; weight n / l.

    Same expectation as hiding each token with probability t ~ U(0, 1) and weighting by 1 / t, with less variance: the
    count is never zero and the weight never exceeds n. Stratified, the levels of a row's draws are spread evenly by one
    shared shift; each l is still exactly uniform, the draws of a row are no longer independent.

    Source: Nie et al., https://arxiv.org/abs/2502.09992, eq. 14. The released code rounds the stratified levels, which
    makes some counts more likely than others; here the floor keeps them uniform.
    """

    draws_per_estimate: ClassVar[int] = 1
    stratified: bool = True

    def views(self, sequences: Sequences, num_draws: int, keys: Int64[Tensor, " B"], mask_id: int) -> Views:
        n = _scored_counts(sequences, num_draws)
        hidden_count = _counts(_levels(keys, num_draws, self.stratified), n)
        hidden = _smallest(_noise(sequences.scored, num_draws, keys), hidden_count)
        return _views(sequences, hidden, n[:, None] / hidden_count.double(), mask_id)


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Hide each scored token with probability t, t uniform on (floor, 1); weight 1 / t. Levels are independent.

    A draw that hides nothing is legal and is worth zero: dropping it would bias the estimate. The floor trades variance
    for bias: leaving out the levels below it moves the mean by O(floor), while the variance grows like log(1 / floor)
    and is infinite at floor 0, which is allowed for the sake of theory.

    Source: Nie et al., https://arxiv.org/abs/2502.09992, eq. 3 and the noising of their training code (floor 1e-3).
    """

    draws_per_estimate: ClassVar[int] = 1
    floor: float = 1e-3

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor < 1.0:
            raise ValueError(f"floor is {self.floor}; expected a noise level from 0 up to, not including, 1")

    def views(self, sequences: Sequences, num_draws: int, keys: Int64[Tensor, " B"], mask_id: int) -> Views:
        _scored_counts(sequences, num_draws)
        t = self.floor + (1.0 - self.floor) * _levels(keys, num_draws, stratified=False)
        hidden = _noise(sequences.scored, num_draws, keys) < t[..., None]
        return _views(sequences, hidden, 1.0 / t, mask_id)


@dataclass(frozen=True, slots=True)
class AntitheticLevels:
    """Fixed counts in pairs with mirrored levels u and 1 - u: l hidden tokens, then n + 1 - l. Weight n / l each.

    Every draw alone is unbiased. The hidden sets of a pair are drawn apart; the levels of the pairs are stratified.
    This is the classical variance reduction, not what LLaDA 1.5 calls antithetic sampling (see the module).
    """

    draws_per_estimate: ClassVar[int] = 2

    def views(self, sequences: Sequences, num_draws: int, keys: Int64[Tensor, " B"], mask_id: int) -> Views:
        n = _scored_counts(sequences, num_draws)
        first = _counts(_levels(keys, _pairs(self, num_draws), stratified=True), n)
        hidden_count = torch.stack([first, n[:, None] + 1 - first], dim=-1).flatten(1)
        hidden = _smallest(_noise(sequences.scored, num_draws, keys), hidden_count)
        return _views(sequences, hidden, n[:, None] / hidden_count.double(), mask_id)


@dataclass(frozen=True, slots=True)
class Complementary:
    """Hidden sets in pairs, a set of l tokens and its complement, so that a pair scores every token exactly once.

    l is uniform on 1..n and the levels of the pairs are stratified. A view that hides c < n tokens weighs n / c. The
    pair l = n is one view that hides everything and one that hides nothing; the first weighs 2 and stands for both.
    The mean of a pair is an unbiased estimate of the ELBO; the two draws alone are not: count c < n comes from either
    side of a pair, count n only from the first, which is why it counts double.

    Source: the coupled masks of Gong et al., DiffuCoder, https://arxiv.org/abs/2506.20639. They average a pair with a
    fully hidden view and draw levels from (0.2, 0.8); the levels and weights here make the pair estimate the ELBO.
    """

    draws_per_estimate: ClassVar[int] = 2

    def views(self, sequences: Sequences, num_draws: int, keys: Int64[Tensor, " B"], mask_id: int) -> Views:
        n = _scored_counts(sequences, num_draws)
        pairs = _pairs(self, num_draws)
        count = _counts(_levels(keys, pairs, stratified=True), n)
        first = _smallest(_noise(sequences.scored, pairs, keys), count)
        hidden = torch.stack([first, sequences.scored[:, None] & ~first], dim=2).flatten(1, 2)
        rest = n[:, None] - count
        weight = torch.where(rest == 0, 2.0, n[:, None] / count.double())
        rest_weight = n[:, None] / rest.clamp(min=1).double()  # a view that hides nothing has nothing to weigh
        return _views(sequences, hidden, torch.stack([weight, rest_weight], dim=-1).flatten(1), mask_id)


@dataclass(frozen=True, slots=True)
class Balanced:
    """Stratified fixed counts that hide next what was hidden least: no token is hidden twice more than another.

    The draws of a row are made in the order of their counts, the smallest first. A draw hides the l tokens that the
    draws before it hid least often, ties broken at random. Each l is uniform on 1..n and each set of l tokens equally
    likely, so every draw alone is unbiased, weight n / l. What is gained: a hard token is not hidden by several draws
    of large weight, or missed by all of them, and sets do not repeat before they must. That is most of the variance
    that stratified levels leave.

    Source: ours; exact variances are in docs/estimators.md. With one draw it is `FixedCount`.
    """

    draws_per_estimate: ClassVar[int] = 1

    def views(self, sequences: Sequences, num_draws: int, keys: Int64[Tensor, " B"], mask_id: int) -> Views:
        n = _scored_counts(sequences, num_draws)
        level = _levels(keys, num_draws, stratified=True)
        hidden_count, noise = _counts(level, n), _noise(sequences.scored, num_draws, keys)
        row = torch.arange(len(sequences), device=keys.device)
        often, hidden = torch.zeros_like(noise[:, 0]), torch.zeros_like(noise, dtype=torch.bool)
        for draw in level.argsort(dim=-1).unbind(-1):
            # Noise is below 1, so it decides among equals only.
            least = (often + noise[row, draw])[:, None]
            hidden[row, draw] = _smallest(least, hidden_count[row, draw][:, None])[:, 0]
            often = often + hidden[row, draw]
        return _views(sequences, hidden, n[:, None] / hidden_count.double(), mask_id)


@dataclass(frozen=True, slots=True)
class FullyHidden:
    """Hide the whole completion and each prompt token with probability `prompt_noise`; weight 1 on scored tokens.

    One forward gives a log-probability to every token, as if they were independent given the prompt. Their sum is the
    likelihood of drawing all of them in one step; it is neither the model's likelihood nor an estimate of the ELBO.
    Completion positions that are not scored are hidden too: the model does not see what follows the end.

    Source: Zhao et al., d1, https://arxiv.org/abs/2504.12216, section 3.2.
    """

    draws_per_estimate: ClassVar[int] = 1
    prompt_noise: float = 0.15

    def __post_init__(self) -> None:
        if not 0.0 <= self.prompt_noise <= 1.0:
            raise ValueError(f"prompt_noise is {self.prompt_noise}; expected a probability")

    def views(self, sequences: Sequences, num_draws: int, keys: Int64[Tensor, " B"], mask_id: int) -> Views:
        _scored_counts(sequences, num_draws)
        noisy = _noise(sequences.prompt, num_draws, keys) < self.prompt_noise
        scored = sequences.scored[:, None].expand_as(noisy)
        weight = torch.ones(noisy.shape[:2], dtype=torch.float64, device=noisy.device)
        return _views(sequences, noisy | sequences.completion[:, None], weight, mask_id, scored)


@dataclass(frozen=True, slots=True)
class FadingOut:
    """Hide the scored token i of n with probability 1 - 2 (1 - share) (1 - i / (n - 1)): ever more towards the end.

    Models decode roughly from left to right, so this resembles what they see when they write. The last token is always
    hidden; on average a share of the tokens is (of a single one: all). Weight 1 on what is hidden: not an ELBO.

    Source: Ma et al., MaskGRPO, https://arxiv.org/abs/2510.02880, and its released code, which counts i over the whole
    canvas, ends of text included, and allows shares below a half, of which it hides more.
    """

    draws_per_estimate: ClassVar[int] = 1
    share: float

    def __post_init__(self) -> None:
        if not 0.5 <= self.share <= 1.0:
            raise ValueError(
                f"share is {self.share}; expected from 0.5 to 1: the first token cannot be kept more often"
            )

    def views(self, sequences: Sequences, num_draws: int, keys: Int64[Tensor, " B"], mask_id: int) -> Views:
        n = _scored_counts(sequences, num_draws)[:, None]
        to_the_end = n - sequences.scored.cumsum(-1)
        kept = 2.0 * (1.0 - self.share) * to_the_end.double() / (n - 1).clamp(min=1)
        noise = _noise(sequences.scored, num_draws, keys)
        hidden = (noise >= kept[:, None]) & sequences.scored[:, None]
        weight = torch.ones(noise.shape[:2], dtype=torch.float64, device=noise.device)
        return _views(sequences, hidden, weight, mask_id)


def _scored_counts(sequences: Sequences, num_draws: int) -> Int64[Tensor, " B"]:
    """How many positions are scored in each row; at least one."""
    if num_draws < 1:
        raise ValueError(f"num_draws is {num_draws}; expected at least 1")
    counts = sequences.scored.sum(-1)
    if (counts == 0).any():
        row = int((counts == 0).nonzero()[0])
        raise ValueError(f"row {row} of the sequences has no scored position; leave it out or score at least one token")
    return counts


def _pairs(corruptor: AntitheticLevels | Complementary, num_draws: int) -> int:
    if num_draws % 2:
        raise ValueError(f"num_draws is {num_draws}; {type(corruptor).__name__} draws in pairs, give an even number")
    return num_draws // 2


def _levels(keys: Int64[Tensor, " B"], num_draws: int, stratified: bool) -> Float64[Tensor, "B K"]:
    """Noise levels, each uniform on [0, 1). Stratified: one shift per row, spread evenly over the draws."""
    keys = fold(keys, "level")
    if not stratified:
        return uniform(keys, num_draws)
    return (uniform(keys, 1) + torch.arange(num_draws, device=keys.device) / num_draws) % 1.0


def _counts(level: Float64[Tensor, "B K"], n: Int64[Tensor, " B"]) -> Int64[Tensor, "B K"]:
    """Levels in [0, 1) to counts in 1..n."""
    # The largest double below 1, times n, rounds to below n: the floor never reaches n.
    return 1 + torch.floor(n[:, None] * level).long()


def _noise(where: Bool[Tensor, "B N"], num_draws: int, keys: Int64[Tensor, " B"]) -> Float64[Tensor, "B K N"]:
    """A uniform number per draw and true position of `where`; infinity elsewhere.

    Numbers are dealt to true positions in order, so padding moves nothing; every draw has a key of its own.
    """
    draw = torch.arange(num_draws, device=keys.device)
    noise = uniform(fold(keys[:, None].expand(-1, num_draws), "hidden", draw), where.shape[1])
    place = (where.cumsum(-1) - 1).clamp(min=0)[:, None].expand_as(noise)
    return noise.gather(-1, place).masked_fill(~where[:, None], float("inf"))


def _smallest(noise: Float64[Tensor, "B K N"], count: Int64[Tensor, "B K"]) -> Bool[Tensor, "B K N"]:
    """The `count` positions with the smallest noise: a random set of that size, all sets being equally likely."""
    rank = noise.argsort(dim=-1).argsort(dim=-1)
    return rank < count[..., None]


def _views(
    sequences: Sequences,
    hidden: Bool[Tensor, "B K N"],
    weight: Float64[Tensor, "B K"],
    mask_id: int,
    scored: Bool[Tensor, "B K N"] | None = None,
) -> Views:
    """Lay B x K draws out as views; what is scored is what is hidden unless said otherwise."""
    scored = hidden if scored is None else scored
    batch, draws, _ = hidden.shape
    return Views(
        canvas=sequences.tokens[:, None].masked_fill(hidden, mask_id).flatten(0, 1),
        scored=scored.flatten(0, 1),
        weight=(weight[..., None] * scored).flatten(0, 1),
        row=torch.arange(batch, device=hidden.device).repeat_interleave(draws),
    )


CORRUPTORS: dict[str, type[Corruptor]] = {
    "fixed_count": FixedCount,
    "bernoulli": Bernoulli,
    "antithetic": AntitheticLevels,
    "complementary": Complementary,
    "balanced": Balanced,
    "fully_hidden": FullyHidden,
}
