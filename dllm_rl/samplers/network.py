"""How the sampling loop calls the network: on unfinished rows only, guided or not, through a cache or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dllm_rl.diffusion.denoiser import Denoiser, PairwiseDenoiser, PlanningDenoiser, SchedulingDenoiser
from dllm_rl.diffusion.transform import Transform, guide
from dllm_rl.errors import ModelContractError
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal, step_keys
from dllm_rl.samplers.shadow import Shadow


@runtime_checkable
class Network(Protocol):
    """Gives logits for positions of a canvas. May remember earlier calls (a cache), so it is forked with the canvas."""

    def logits(self, canvas: Canvas, positions: Bool[Tensor, "B L"]) -> Float[Tensor, "T V"]:
        """Logits at the T true positions, in row-major order; rows that are finished have none."""
        ...

    def plan(
        self, canvas: Canvas, positions: Bool[Tensor, "B L"], open: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "T V"], Float[Tensor, " T"]]:
        """Logits and the planner head's logits at `positions`, when those of `open` may be written.

        Raises:
            ModelContractError: the model has no planner, or it cannot be read this way.
        """
        ...

    def pair(self, canvas: Canvas, positions: Bool[Tensor, "B L"]) -> tuple[Float[Tensor, "T V"], Float[Tensor, "T V"]]:
        """Logits with and without the prompt, not yet put together; for who decides the strength of guidance later."""
        ...

    def schedule(self, features: Float64[Tensor, "B F"], actions: int) -> Float[Tensor, "B A"]:
        """Means of the schedule policy's actions.

        Raises:
            ModelContractError: the model has no schedule head, or one that was made for something else.
        """
        ...

    def shadow(
        self, canvas: Canvas, positions: Bool[Tensor, "B L"], shadowed: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "T V"], Float[Tensor, "U V"]]:
        """Logits at `positions`, and at `shadowed` as seen by a hidden copy of each; see `samplers.shadow`.

        Raises:
            ModelContractError: the model cannot be told who looks at whom.
        """
        ...

    def select(self, index: Int64[Tensor, " R"]) -> Network:
        """The network as it stands for the rows at `index`."""
        ...


class Exact:
    """Every forward computes the whole canvas of every unfinished row."""

    def __init__(self, denoiser: Denoiser, cfg_scale: float = 0.0) -> None:
        self.denoiser, self.cfg_scale = denoiser, cfg_scale

    def logits(self, canvas: Canvas, positions: Bool[Tensor, "B L"]) -> Float[Tensor, "T V"]:
        if self.cfg_scale:
            return guide(*self.pair(canvas, positions), self.cfg_scale)
        live, attend, where = unfinished(canvas, positions)
        return self.denoiser.logits_at(canvas.tokens[live], where, attend)

    def pair(self, canvas: Canvas, positions: Bool[Tensor, "B L"]) -> tuple[Float[Tensor, "T V"], Float[Tensor, "T V"]]:
        live, attend, where = unfinished(canvas, positions)
        seeing = self.denoiser.logits_at(canvas.tokens[live], where, attend)
        blind = canvas.without_prompt(self.denoiser.spec.mask_id)[live]
        return seeing, self.denoiser.logits_at(blind, where, attend)

    def schedule(self, features: Float64[Tensor, "B F"], actions: int) -> Float[Tensor, "B A"]:
        return scheduled(self.denoiser, features, actions)

    def plan(
        self, canvas: Canvas, positions: Bool[Tensor, "B L"], open: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "T V"], Float[Tensor, " T"]]:
        if not isinstance(self.denoiser, PlanningDenoiser):
            raise ModelContractError(
                "this sampler follows a planner and the model has no planner head; load a model with one, or choose "
                "another sampler"
            )
        if self.cfg_scale:
            raise ModelContractError("a planner cannot be guided; set cfg_scale to 0")
        live, attend, where = unfinished(canvas, positions)
        return self.denoiser.plan_at(canvas.tokens[live], where, attend, open=canvas.columns(open)[live])

    def shadow(
        self, canvas: Canvas, positions: Bool[Tensor, "B L"], shadowed: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "T V"], Float[Tensor, "U V"]]:
        if not isinstance(self.denoiser, PairwiseDenoiser):
            raise ModelContractError(
                "this sampler asks what each token looks like to a copy that cannot see it, and the model cannot be "
                "told who looks at whom; choose another sampler"
            )
        live = canvas.select(~canvas.finished)
        casts = Shadow.of(live, self.denoiser.spec)
        where = casts.where(positions[~canvas.finished], shadowed[~canvas.finished])
        logits = self.denoiser.logits_seeing(casts.extended(live.tokens), where, casts.sees, casts.position_ids)
        if self.cfg_scale:
            blind = casts.extended(live.without_prompt(self.denoiser.spec.mask_id))
            unconditional = self.denoiser.logits_seeing(blind, where, casts.sees, casts.position_ids)
            logits = guide(logits, unconditional, self.cfg_scale)
        in_shadow = where.nonzero()[:, 1] >= canvas.tokens.shape[1]
        return logits[~in_shadow], logits[in_shadow]

    def select(self, index: Int64[Tensor, " R"]) -> Exact:
        return self


def unfinished(
    canvas: Canvas, positions: Bool[Tensor, "B L"]
) -> tuple[Int64[Tensor, " R"], Bool[Tensor, "R N"] | None, Bool[Tensor, "R N"]]:
    """The rows that still take part, what they attend to, and `positions` as columns of theirs."""
    live = (~canvas.finished).nonzero()[:, 0]
    return live, None if canvas.attend is None else canvas.attend[live], canvas.columns(positions)[live]


def scheduled(denoiser: Denoiser, features: Float64[Tensor, "B F"], actions: int) -> Float[Tensor, "B A"]:
    """What the schedule head says. See `Network.schedule`."""
    if not isinstance(denoiser, SchedulingDenoiser):
        raise ModelContractError(
            "this sampler follows a schedule policy and the model has no schedule head; load a model with one, or "
            "choose another sampler"
        )
    means = denoiser.schedule_at(features)
    if means.shape[1] != actions:
        raise ModelContractError(
            f"the model's schedule head decides {means.shape[1]} numbers and the sampler's option `learned` names "
            f"{actions}; give as many as the head was made for"
        )
    return means


def propose_pair(network: Network, canvas: Canvas, positions: Bool[Tensor, "B L"]) -> Proposal:
    """Run the network with and without the prompt, and leave the guidance to whoever decides its strength.

    Raises:
        ModelContractError: a logit is NaN.
    """
    logits, unconditional = network.pair(canvas, positions)
    _refuse_nan(canvas, positions.nonzero()[:, 0], unconditional)
    return replace(_proposal(canvas, positions, logits, None), unconditional=unconditional)


def propose(network: Network, canvas: Canvas, positions: Bool[Tensor, "B L"], with_plan: bool) -> Proposal:
    """Run the network once (twice under guidance) and keep what it says of `positions`.

    A planner is told which positions may be written, whatever else is asked about.

    Raises:
        ModelContractError: a logit is NaN.
    """
    plan = None
    if with_plan:
        logits, plan = network.plan(canvas, positions, canvas.eligible)
    else:
        logits = network.logits(canvas, positions)
    return _proposal(canvas, positions, logits, plan)


def propose_with_shadow(
    network: Network, canvas: Canvas, positions: Bool[Tensor, "B L"], shadowed: Bool[Tensor, "B L"]
) -> tuple[Proposal, Proposal]:
    """What one forward says of `positions`, and of `shadowed` without looking at the token there.

    Raises:
        ModelContractError: a logit is NaN, or the model cannot do it.
    """
    logits, shadow = network.shadow(canvas, positions, shadowed)
    return _proposal(canvas, positions, logits, None), _proposal(canvas, shadowed, shadow, None)


def _proposal(
    canvas: Canvas, positions: Bool[Tensor, "B L"], logits: Float[Tensor, "T V"], plan: Float[Tensor, " T"] | None
) -> Proposal:
    row, index = positions.nonzero(as_tuple=True)
    _refuse_nan(canvas, row, logits)
    return Proposal(row, index, logits, step_keys(canvas, row, index), plan)


def _refuse_nan(canvas: Canvas, row: Int64[Tensor, " T"], logits: Float[Tensor, "T V"]) -> None:
    nan = logits.isnan().any(dim=-1)
    if nan.any():
        step = int(canvas.forwards[row[nan][0]]) + 1
        raise ModelContractError(f"the network gave NaN logits at forward {step}; expected numbers. Check its weights")


def entropies(proposal: Proposal, forbidden_ids: tuple[int, ...]) -> Float64[Tensor, " T"]:
    """Entropy of what is predicted at each position, nats at temperature 1."""
    permitted = Transform(forbidden_ids=forbidden_ids)

    def entropy(logits: Tensor) -> Tensor:
        log_probs = permitted.log_probs(logits.to(torch.float64))
        each: Tensor = torch.special.entr(log_probs.exp()).sum(dim=-1)
        return each

    return proposal.per_position(entropy)


def mean_entropy(proposal: Proposal, forbidden_ids: tuple[int, ...], num_rows: int) -> Float64[Tensor, " B"]:
    """Mean entropy of each row's positions, nats at temperature 1; NaN for a row without any."""
    each = entropies(proposal, forbidden_ids)
    total = torch.zeros(num_rows, dtype=torch.float64, device=each.device).index_add(0, proposal.row, each)
    counts: Tensor = torch.bincount(proposal.row, minlength=num_rows)
    return total / counts
