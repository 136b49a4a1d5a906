"""Supervised fine-tuning: maximise the ELBO of given completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from dllm_rl.algorithms.base import Algorithm, Batch, Loss, Scores
from dllm_rl.algorithms.corruption import ElboCorruption, FixedCountSettings, check_draws, estimates_of

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64
    from torch import Tensor

    from dllm_rl.diffusion.views import Sequences, Views


class SFT(Algorithm):
    """Negative ELBO per token of the completion, the prompt clean.

    Not for preference data or rewards. The completion's last scored token should be one EOS: it is how the model
    learns to stop.

    Source: Nie et al., Large Language Diffusion Models, https://arxiv.org/abs/2502.09992, eq. 5. Deviations: counts are
    fixed and stratified by default (same mean, less variance), and padding is not trained on.
    """

    source: ClassVar[Literal["text", "pairs", "rollouts"]] = "text"
    citation: ClassVar[str] = (
        "@article{nie2025llada, title={Large Language Diffusion Models}, author={Nie, Shen and Zhu, Fengqi and You, "
        "Zebin and Zhang, Xiaolu and Ou, Jingyang and Hu, Jun and Zhou, Jun and Lin, Yankai and Wen, Ji-Rong and Li, "
        "Chongxuan}, journal={arXiv preprint arXiv:2502.09992}, year={2025}}"
    )

    type: Literal["sft"] = "sft"
    num_draws: Annotated[int, Field(ge=1)] = 1
    """Views per text and update."""
    corruption: Annotated[ElboCorruption, Field(discriminator="type")] = FixedCountSettings()
    """How views are noised."""
    reduction: Literal["sequence", "token"] = "sequence"
    """Mean over texts of each one's per-token loss (the paper), or mean over all tokens of the update."""

    @model_validator(mode="after")
    def _check_draws(self) -> SFT:
        check_draws(self.corruption, self.num_draws)
        return self

    @property
    def is_sum_over_views(self) -> bool:
        return True

    @property
    def allows_dropout(self) -> bool:
        return True

    def views(self, sequences: Sequences, keys: Int64[Tensor, " B"], mask_id: int) -> Views:
        return self.corruption.build().views(sequences, self.num_draws, keys, mask_id)

    def estimates(self, batch: Batch, logp: Float[Tensor, "R N"]) -> Float64[Tensor, "B M"]:
        return estimates_of(self.corruption, batch, logp)

    def count(self, batch: Batch) -> float:
        return float(len(batch.sequences) if self.reduction == "sequence" else batch.sequences.scored.sum())

    def loss(self, batch: Batch, scores: Scores) -> Loss:
        from dllm_rl.objectives.reduce import Mean

        views = batch.views.select(scores.view)
        per_view = (views.weight * scores.logp).sum(-1) / self.num_draws
        length = batch.sequences.scored.sum(-1)[views.row]
        per_token = per_view / length
        total = -(per_token if self.reduction == "sequence" else per_view).sum()
        nats = Mean(-per_view.detach().sum(), length.sum() / self.num_draws)
        return Loss(total, {"elbo/nats_per_token": nats})
