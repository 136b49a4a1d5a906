"""Sequential Monte Carlo: rollouts weighed as they are written, the heavy ones copied, the light ones dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from dllm_rl import rng
from dllm_rl.diffusion.denoiser import Denoiser
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.cache import CachePolicy
from dllm_rl.samplers.canvas import Template
from dllm_rl.samplers.drivers.base import candidate_keys, refuse_equal_candidates, refuse_fewer, repeated
from dllm_rl.samplers.drivers.best_of import pick
from dllm_rl.samplers.drivers.potential import E_SMC, Potential
from dllm_rl.samplers.drivers.resample import POINTS, at, effective_sample_size, log_mean
from dllm_rl.samplers.drivers.statistics import Statistic, path_entropy, smallest, values_of
from dllm_rl.samplers.generate import begin, trajectory
from dllm_rl.samplers.loop import Sampler, Sight, State, act, look


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One weighing of all particles."""

    step: int
    """Forwards that unfinished particles had made."""
    log_potential: Float64[Tensor, "P N"]
    log_weights: Float64[Tensor, "P N"]
    """With this potential, since the last resampling; before the one that may follow."""
    resampled: Bool[Tensor, " P"]
    ancestors: Int64[Tensor, "P N"]
    """Whose copy each particle is from here on; itself where there was no resampling."""

    @property
    def carried(self) -> Float64[Tensor, "P N"]:
        """Log-weights after the checkpoint: 0 for new copies, unchanged for others."""
        return self.log_weights.masked_fill(self.resampled[:, None], 0.0)

    @property
    def log_factor(self) -> Float64[Tensor, " P"]:
        """What a resampling moves from the weights into the normalising constant."""
        return log_mean(self.log_weights).where(self.resampled, 0.0)


@dataclass(frozen=True, slots=True)
class Particles:
    """The particle picked for each prompt, and all of them. See `base.Driven`."""

    trajectory: Trajectory
    forwards: list[int]
    candidates: Trajectory
    """N particles of the first prompt, then N of the second, ...; their `keys` are those since the last resampling."""
    log_weights: Float64[Tensor, "P N"]
    """Of the finished particles; their exponentials, normalised, weigh the rollouts of the target."""
    log_normaliser: Float64[Tensor, " P"]
    """Logarithm of the estimate of the sum over all rollouts of q times the potentials; the estimate is unbiased, its
    logarithm is not."""
    checkpoints: list[Checkpoint]
    picked: Int64[Tensor, " P"]


@dataclass(frozen=True, slots=True)
class Smc:
    """N particles of each prompt, weighed every few forwards and resampled when few of them hold the weight.

    Let x_k be a state after k forwards, q the law of the sampler's rollouts and G a potential. The weighted particles
    approximate the Feynman-Kac path measure proportional to

        q(x_0, x_1, ...) * product of G(x_k) over k = every, 2 * every, ... while x_k is not finished.

    Weights are products of potentials; they carry over from weighing to weighing until a resampling, after which they
    are 1 and their mean is a factor of the normalising constant. Resampled copies get keys of their own, so they differ
    from there on. Finished particles keep their weight. With a potential that is constant this is plain sampling.

    A particle's log is that of its own draws, but its law is not the product of q: others were copied over or dropped
    because of what was drawn. No on-policy loss applies, and `exactness` is "none". Potentials cost no forward of their
    own: they read the one that the next step needs.

    Source: Chen et al., https://arxiv.org/abs/2512.21336, E-SMC. Deviations from the released code: a potential is used
    as it is and not through a second exponential; weights carry over, with a gate on the effective sample size; the
    pick is by the entropy of the path, where the code compares rewards of finished states, which are all 1.

    Raises:
        RecipeError: n or every is below 1, ess not in (0, 1], or no such resampling; when it runs, all particles would
            be the same, or a potential is NaN or leaves no particle of a prompt any weight.
    """

    n: int = 8
    potential: Potential = E_SMC
    every: int = 50
    """Forwards between weighings."""
    ess: float = 0.5
    """Resample when the effective sample size falls below this share of the particles; 1 unless all weigh the same."""
    resampling: str = "systematic"
    """Or "multinomial", with more variance."""
    by: Statistic | None = path_entropy
    """The particle whose statistic is smallest is picked; None draws one in proportion to the weights, the only pick
    that samples from the target as N grows."""

    def __post_init__(self) -> None:
        refuse_fewer("n", self.n)
        refuse_fewer("every", self.every)
        if not 0 < self.ess <= 1:
            raise RecipeError(f"ess is {self.ess}; expected a share of the particles, above 0 and at most 1")
        if self.resampling not in POINTS:
            raise RecipeError(f"resampling is {self.resampling!r}; expected one of {', '.join(POINTS)}")

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
    ) -> Particles:
        refuse_equal_candidates(sampler, self.n)
        rows, sampler = repeated(prompts, self.n), replace(sampler, measure_entropy=True)
        templates = None if fixed is None else repeated(fixed, self.n)
        state = begin(model, rows, sampler, candidate_keys(keys, self.n).flatten(), fixed=templates, policy=policy)
        keys, step, checkpoints = keys.to(model.device), 0, list[Checkpoint]()
        log_weights = torch.zeros(len(prompts), self.n, dtype=torch.float64, device=model.device)
        forwards = torch.zeros(len(prompts), dtype=torch.int64, device=model.device)
        while not bool(state.canvas.finished.all()):
            sight = look(state, sampler)
            forwards += (~state.canvas.finished).view(-1, self.n).sum(dim=1)
            if step and step % self.every == 0:
                checkpoints.append(self._weigh(step, log_weights, state, sight, sampler, keys))
                log_weights = checkpoints[-1].carried
                state, sight = _resampled(state, sight, checkpoints[-1], keys)
                if bool(state.canvas.finished.all()):
                    break
            state = act(state, sight, sampler, model.spec.mask_id)
            step += 1
        out = trajectory(state, rows, model, sampler, policy, update)
        candidates = out if self.n == 1 else replace(out, exactness="none")
        log_normaliser = log_mean(log_weights) + sum((point.log_factor for point in checkpoints), torch.zeros(()))
        picked = self._pick(candidates, log_weights, keys)
        chosen = pick(candidates, picked, self.n)
        return Particles(chosen, forwards.tolist(), candidates, log_weights, log_normaliser, checkpoints, picked)

    def _weigh(
        self,
        step: int,
        log_weights: Float64[Tensor, "P N"],
        state: State,
        sight: Sight,
        sampler: Sampler,
        keys: Int64[Tensor, " P"],
    ) -> Checkpoint:
        asked = self.potential(sight, state.canvas, sampler)
        log_potential = asked.to(torch.float64).masked_fill(state.canvas.finished, 0.0).view(-1, self.n)
        log_weights = log_weights + log_potential
        heaviest = log_weights.amax(dim=1)  # NaN if any is
        if not bool(heaviest.isfinite().all()):
            prompt = int((~heaviest.isfinite()).nonzero()[0, 0])
            raise RecipeError(
                f"the particles of prompt {prompt} cannot be weighed after {step} forwards: log-potentials are "
                f"{log_potential[prompt].tolist()}; expected numbers, at least one above minus infinity"
            )
        resampled = effective_sample_size(log_weights) < self.ess * self.n
        points = POINTS[self.resampling](rng.fold(keys, "resample", step), self.n)
        itself = torch.arange(self.n, device=keys.device).expand_as(log_weights)
        ancestors = torch.where(resampled[:, None], at(points, log_weights), itself)
        return Checkpoint(step, log_potential, log_weights, resampled, ancestors)

    def _pick(
        self, candidates: Trajectory, log_weights: Float64[Tensor, "P N"], keys: Int64[Tensor, " P"]
    ) -> Int64[Tensor, " P"]:
        if self.by is None:
            return at(rng.uniform(rng.fold(keys, "pick"), 1), log_weights)[:, 0]
        return smallest(values_of(candidates, self.by, self.n))


def _resampled(state: State, sight: Sight, checkpoint: Checkpoint, keys: Int64[Tensor, " P"]) -> tuple[State, Sight]:
    """Copies of the ancestors, with random numbers of their own from here on."""
    if not bool(checkpoint.resampled.any()):
        return state, sight
    prompts, n = checkpoint.ancestors.shape
    index = (torch.arange(prompts, device=keys.device)[:, None] * n + checkpoint.ancestors).flatten()
    state = state.select(index)
    column = keys[:, None].expand(-1, n)
    fresh = rng.fold(column, "particle", checkpoint.step, torch.arange(n, device=keys.device)).flatten()
    canvas = state.canvas
    canvas = replace(canvas, keys=torch.where(checkpoint.resampled.repeat_interleave(n), fresh, canvas.keys))
    return replace(state, canvas=canvas), sight.select(index, canvas)
