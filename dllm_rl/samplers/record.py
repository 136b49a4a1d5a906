"""Collects what the loop does and makes a trajectory of it."""

from __future__ import annotations

from dataclasses import fields

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.trajectory import Events, Exactness, Op, Trajectory
from dllm_rl.diffusion.transform import Transform
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Draw, Proposal


class Recorder:
    """The log of one rollout."""

    def __init__(self) -> None:
        self._events: list[Events] = []
        self._selection_logp: list[Float64[Tensor, " B"]] = []
        self._took_part: list[Bool[Tensor, " B"]] = []

    @property
    def step(self) -> int:
        """Forwards recorded so far."""
        return len(self._took_part)

    def forward(self, took_part: Bool[Tensor, " B"], selection_logp: Float64[Tensor, " B"]) -> None:
        """One forward: the rows it served and the log-probability of what was selected. Call before its writes."""
        self._took_part.append(took_part)
        self._selection_logp.append(selection_logp)

    def write(self, proposal: Proposal, draw: Draw, conf: Float[Tensor, " C"]) -> None:
        """Tokens written by the last forward; the proposal is that of the written positions only."""
        logp = proposal.gather(lambda part: torch.log_softmax(part.logits.to(torch.float64), dim=-1), draw.token)
        self._events.append(
            Events(
                row=proposal.row,
                step=torch.full_like(proposal.row, self.step),
                position=proposal.index,
                op=torch.full_like(proposal.row, Op.WRITE),
                token=draw.token,
                logq=draw.logq,
                logp=logp,
                conf=conf.to(torch.float64),
            )
        )

    def finish(
        self,
        prompts: list[list[int]],
        canvas: Canvas,
        spec: DiffusionSpec,
        transform: Transform,
        exactness: Exactness,
        update: int,
    ) -> Trajectory:
        """The trajectory of everything recorded."""
        events = Events(*(torch.cat([getattr(part, field.name) for part in self._events]) for field in fields(Events)))
        return Trajectory(
            prompts=prompts,
            gen_length=canvas.hidden.shape[1],
            events=events.select(events.row.argsort(stable=True)),  # recorded by step, so steps stay in order
            selection_logp=torch.stack(self._selection_logp, dim=1),
            nfe=torch.stack(self._took_part).sum(dim=0).tolist(),
            keys=canvas.keys,
            transform=transform,
            exactness=exactness,
            mask_id=spec.mask_id,
            eos_ids=spec.eos_ids,
            update=update,
        )
