"""A denoiser small enough to differentiate by hand in: position-mixing sums of embeddings, one linear head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dllm_rl.diffusion.denoiser import DiffusionSpec, TokenScores


class SmallDenoiser(nn.Module):
    """Logits at a position from its own token, the mean of all attended tokens and the position."""

    def __init__(self, vocabulary: int = 7, positions: int = 12, width: int = 5, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))  # noqa: E731
        self.token, self.place, self.head = draw(vocabulary, width), draw(positions, width), draw(width, vocabulary)
        self.spec = DiffusionSpec(mask_id=vocabulary - 1, eos_ids=(0,), forbidden_ids=(vocabulary - 1,))
        self.forwards = 0

    @property
    def device(self) -> torch.device:
        return self.head.device

    @property
    def max_positions(self) -> int:
        return self.place.shape[0]

    def _logits(self, canvas: Tensor, attend: Tensor | None) -> Tensor:
        self.forwards += 1
        seen = torch.ones_like(canvas, dtype=torch.bool) if attend is None else attend
        embedded = self.token[canvas] * seen[..., None]
        mean = embedded.sum(1, keepdim=True) / seen.sum(1)[:, None, None]
        return torch.tanh(embedded + mean + self.place[: canvas.shape[1]]) @ self.head

    def logits_at(self, canvas: Tensor, where: Tensor, attend: Tensor | None = None) -> Tensor:
        return self._logits(canvas, attend)[where]

    def plan_at(
        self, canvas: Tensor, where: Tensor, attend: Tensor | None = None, *, open: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The planner's logit is one of the tokens'."""
        logits = self._logits(canvas, attend)[where]
        return logits, logits[:, 1]

    def score(  # type: ignore[no-untyped-def]
        self, canvas, tokens, where, attend=None, transform=None, *, prompt=None, entropy=False, open=None, **schedule
    ):
        logits = self._logits(canvas, attend)
        logp = logits.log_softmax(-1) if transform is None else transform.log_probs(logits)
        taken = logp.gather(-1, tokens[..., None])[..., 0]
        spread = -(logp.exp() * logp.clamp(min=-1e4)).sum(-1).masked_fill(~where, 0.0)
        plan = None if open is None else logits[..., 1].masked_fill(~open, 0.0)
        return TokenScores(taken.masked_fill(~where, 0.0), spread if entropy else None, plan)
