"""A denoiser small enough to enumerate: its logits are looked up by the canvas."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dllm_rl.diffusion.denoiser import DiffusionSpec, TokenScores
from dllm_rl.diffusion.transform import Transform, guide


class Tabular:
    """Random logits for every canvas of at most `longest` attended tokens; padding does not exist for it.

    Tokens are 0..words - 1 and the mask is `words`, which has a logit like the others. float64, so that enumerations
    agree to rounding. `tables[n]` is [canvases of length n, n, words + 1] and can require grad.
    """

    def __init__(self, seed: int = 0, words: int = 3, longest: int = 4, eos_ids: tuple[int, ...] = ()) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.spec = DiffusionSpec(mask_id=words, eos_ids=eos_ids, forbidden_ids=(words,))
        self.device = torch.device("cpu")
        self.max_positions: int | None = longest
        self.size = words + 1
        self.tables = {
            n: 2.0 * torch.randn(self.size**n, n, self.size, generator=generator, dtype=torch.float64)
            for n in range(1, longest + 1)
        }

    def logits(self, canvas: Tensor, attend: Tensor | None = None) -> Tensor:
        attend = torch.ones_like(canvas, dtype=torch.bool) if attend is None else attend
        out = torch.zeros(*canvas.shape, self.size, dtype=torch.float64)
        for n in attend.sum(-1).unique().tolist():
            rows = attend.sum(-1) == n
            if n:
                ids = canvas[rows][attend[rows]].view(-1, n)
                index = (ids * self.size ** torch.arange(n)).sum(-1)
                where = (attend & rows[:, None]).nonzero(as_tuple=True)
                out = out.index_put(where, self.tables[n][index].flatten(0, 1))
        return out

    def logits_at(self, canvas: Tensor, where: Tensor, attend: Tensor | None = None) -> Tensor:
        return self.logits(canvas, attend)[where]

    def score(
        self,
        canvas: Tensor,
        tokens: Tensor,
        where: Tensor,
        attend: Tensor | None = None,
        transform: Transform | None = None,
        *,
        prompt: Tensor | None = None,
        entropy: bool = False,
        open: Tensor | None = None,
        temperature: Tensor | None = None,
        cfg_scale: Tensor | None = None,
    ) -> TokenScores:
        transform = transform or Transform()
        logits = self.logits(canvas, attend)
        if transform.cfg_scale or cfg_scale is not None:
            assert prompt is not None
            blind = self.logits(canvas.masked_fill(prompt, self.spec.mask_id), attend)
            own = None if cfg_scale is None else cfg_scale[:, None, None].expand(-1, canvas.shape[1], 1)
            logits = guide(logits, blind, transform.cfg_scale if own is None else own)
        if temperature is not None:
            logits, transform = logits / temperature[:, None, None], replace(transform, temperature=1.0)
        logp = transform.log_probs(logits)
        picked = logp.gather(-1, tokens[..., None])[..., 0].where(where, torch.zeros(()).double())
        spread = -(logp.exp() * logp.clamp(min=-1e4)).sum(-1).where(where, torch.zeros(()).double())
        plan = None if open is None else self.plan(canvas, attend).masked_fill(~open, 0.0)
        return TokenScores(picked, spread if entropy else None, plan)

    def plan(self, canvas: Tensor, attend: Tensor | None = None) -> Tensor:
        raise AssertionError("a table has no planner")


class Planned(Tabular):
    """A table with a planner: a logit for every canvas and position. Both tables can require grad."""

    def __init__(self, seed: int = 0, words: int = 3, longest: int = 4, eos_ids: tuple[int, ...] = ()) -> None:
        super().__init__(seed, words, longest, eos_ids)
        self.planner = Tabular(seed + 100, words, longest)

    def plan(self, canvas: Tensor, attend: Tensor | None = None) -> Tensor:
        return self.planner.logits(canvas, attend)[..., 0]

    def plan_at(
        self, canvas: Tensor, where: Tensor, attend: Tensor | None = None, *, open: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.logits_at(canvas, where, attend), self.plan(canvas, attend)[where]
