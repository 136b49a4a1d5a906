"""Look-ahead: several ways to make each step are tried, and the one after which the network is surest is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dllm_rl.diffusion.denoiser import Denoiser
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.cache import CachePolicy
from dllm_rl.samplers.canvas import Canvas, Template
from dllm_rl.samplers.drivers.base import candidate_keys, refuse_fewer
from dllm_rl.samplers.generate import begin, trajectory
from dllm_rl.samplers.loop import Sampler, Sight, State, act, look
from dllm_rl.samplers.network import entropies, mean_entropy
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.score import BlindScore, DrawnScore, Score


@dataclass(frozen=True, slots=True)
class Ahead:
    """What was decoded with look-ahead. See `base.Driven`."""

    trajectory: Trajectory
    forwards: list[int]


def _noise(proposal: Proposal, temperature: Float64[Tensor, " B"]) -> Float64[Tensor, " T"]:
    return temperature[proposal.row] * -(-proposal.uniform("candidate").log()).log()


@dataclass(frozen=True, slots=True)
class Perturbed:
    """A score with Gumbel noise, of a temperature that each row has for itself; 0 leaves the score as it is."""

    score: BlindScore
    temperature: Float64[Tensor, " B"]

    @property
    def reads_plan(self) -> bool:
        return self.score.reads_plan

    def of_positions(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, " T"]:
        score = self.score.of_positions(proposal, canvas)
        return score + _noise(proposal, self.temperature).to(score.dtype)


@dataclass(frozen=True, slots=True)
class PerturbedDraw:
    """`Perturbed`, of a score that reads the token drawn; the noise is the position's, whatever the token."""

    score: DrawnScore
    temperature: Float64[Tensor, " B"]

    def of_tokens(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, "T V"]:
        score = self.score.of_tokens(proposal, canvas)
        return score + _noise(proposal, self.temperature).to(score.dtype)[:, None]


def perturbed(score: Score, temperature: Float64[Tensor, " B"]) -> Score:
    """The score with noise on it."""
    if isinstance(score, BlindScore):
        return Perturbed(score, temperature)
    return PerturbedDraw(score, temperature)


@dataclass(frozen=True, slots=True)
class LookAhead:
    """The best of n ways to make every step.

    Candidates are the sampler's own step, and others whose scores are perturbed and whose tokens are drawn anew. One
    forward looks at all of them, and the one with the largest J is kept, the first among equals:

        J = - sum of the entropies of the positions it wrote - mean entropy of the positions it left open

    That forward is the next step's: a step costs as many evaluations as it has candidates that
    differ, and not one more. Where every open position is sure, the order does not matter and there is one candidate.

    n times the evaluations for the same number of steps: compare with `BestOfN` at equal cost. J favours what makes the
    rest predictable, an early end of text included. No likelihood: the step kept was compared with others.

    Source: Information-Gain Sampler, https://arxiv.org/abs/2602.18176, with 8 candidates and position temperature 0.1.
    Deviations: noise is added to the wrapped sampler's score, most often a log-probability, where the released code
    perturbs a probability; the mean is over the open block; the bypass needs every open position to be sure, where the
    code writes the sure ones without a look ahead; entropies are of the ids that may be drawn.

    Raises:
        RecipeError: n is below 1, temperature not a positive number, or sure not in (0, 1].
    """

    n: int = 8
    temperature: float = 0.1
    """Of the noise on scores; not that of the tokens."""
    sure: float = 0.9
    """Probability of the likeliest token from which a position is sure; 1 hardly ever bypasses."""

    def __post_init__(self) -> None:
        refuse_fewer("n", self.n)
        if not 0 < self.temperature < float("inf"):
            raise RecipeError(f"temperature of the look-ahead is {self.temperature}; expected a finite number above 0")
        if not 0 < self.sure <= 1:
            raise RecipeError(f"sure is {self.sure}; expected a probability above 0, at most 1")

    @torch.no_grad()
    def __call__(
        self,
        model: Denoiser,
        prompts: Sequence[Sequence[int]],
        sampler: Sampler,
        keys: Int64[Tensor, " P"],
        update: int = 0,
        *,
        fixed: Sequence[Template] | None = None,
        policy: CachePolicy | None = None,
    ) -> Ahead:
        keys = keys.to(model.device)
        state = begin(model, prompts, sampler, keys, fixed=fixed, policy=policy)
        forwards = (~state.canvas.finished).to(torch.int64)
        sight = look(state, sampler) if bool(forwards.any()) else None
        while sight is not None:
            tried = self._try(state, sight, keys, sampler, model.spec.mask_id)
            forwards += torch.bincount(tried.owner[~tried.state.canvas.finished], minlength=len(prompts))
            state, sight = tried.best(keys)
        out = trajectory(state, prompts, model, sampler, policy, update)
        return Ahead(out if self.n == 1 else replace(out, exactness="none"), forwards.tolist())

    def _try(self, state: State, sight: Sight, keys: Int64[Tensor, " P"], sampler: Sampler, mask_id: int) -> _Tried:
        """Make the step in several ways, and look at what each leads to."""
        before = state.canvas
        count = torch.where(self._is_sure(sight, len(keys), sampler), 1, self.n)
        owner = torch.repeat_interleave(count)
        candidate = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
        forks = state.select(owner)
        canvas = replace(forks.canvas, keys=candidate_keys(keys, self.n)[owner, candidate])
        noisy = replace(sampler, score=perturbed(sampler.score, self.temperature * (candidate > 0).to(torch.float64)))
        after = act(replace(forks, canvas=canvas), sight.select(owner, canvas), noisy, mask_id)
        forbidden = sampler.transform.forbidden_ids
        entropy = sight.proposal.dense(entropies(sight.proposal, forbidden), before.hidden.shape)
        written = canvas.eligible & ~after.canvas.hidden
        kept = _distinct(owner, after.canvas)
        after, owner, candidate = after.select(kept), owner[kept], candidate[kept]
        objective = -(entropy[owner] * written[kept]).sum(dim=1)
        ahead = None if bool(after.canvas.finished.all()) else look(after, sampler)
        if ahead is not None:
            objective -= mean_entropy(ahead.proposal, forbidden, len(owner)).nan_to_num(nan=0.0)
        return _Tried(after, ahead, owner, candidate, objective)

    def _is_sure(self, sight: Sight, rows: int, sampler: Sampler) -> Bool[Tensor, " P"]:
        """Rows whose open positions all have a token likely enough, at temperature 1; also those with nothing open."""
        permitted = Transform(forbidden_ids=sampler.transform.forbidden_ids)
        peak = sight.proposal.per_position(lambda logits: permitted.log_probs(logits).amax(dim=-1).exp())
        return torch.bincount(sight.proposal.row[peak < self.sure], minlength=rows) == 0


@dataclass(frozen=True, slots=True)
class _Tried:
    """Candidates after a step, and what the network says of them."""

    state: State
    sight: Sight | None
    """None when all are finished."""
    owner: Int64[Tensor, " R"]
    """The prompt that each belongs to."""
    candidate: Int64[Tensor, " R"]
    objective: Float64[Tensor, " R"]

    def best(self, keys: Int64[Tensor, " P"]) -> tuple[State, Sight | None]:
        """The best of each prompt's, of equals the first, with the prompt's own key; no sight when all are finished."""
        cell, shape = (self.owner, self.candidate), (len(keys), int(self.candidate.max()) + 1)
        table = torch.full(shape, float("-inf"), dtype=torch.float64, device=keys.device)
        place = table.index_put(cell, self.objective).argmax(dim=1, keepdim=True)
        row = torch.zeros(shape, dtype=torch.int64, device=keys.device)
        row = row.index_put(cell, torch.arange(len(self.owner), device=keys.device)).gather(1, place)[:, 0]
        state = self.state.select(row)
        state = replace(state, canvas=replace(state.canvas, keys=keys))
        if self.sight is None or bool(state.canvas.finished.all()):
            return state, None
        return state, self.sight.select(row, state.canvas)


def _distinct(owner: Int64[Tensor, " R"], canvas: Canvas) -> Int64[Tensor, " D"]:
    """The first of those candidates of a prompt that came to the same canvas."""
    _, group = torch.unique(torch.cat([owner[:, None], canvas.completion], dim=1), dim=0, return_inverse=True)
    place = torch.arange(len(owner), device=owner.device)
    first = torch.full_like(place, len(place)).scatter_reduce(0, group, place, "amin")
    return first[first < len(place)].sort().values
