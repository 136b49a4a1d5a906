"""VRPO: direct preference optimisation on ELBOs, with the draws shared between policy and reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from dllm_rl.algorithms.base import Algorithm, Batch, Loss, Scores
from dllm_rl.algorithms.corruption import ElboCorruption, FixedCountSettings, check_draws, estimates_of

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64
    from torch import Tensor

    from dllm_rl.diffusion.views import Sequences, Views
    from dllm_rl.objectives.reduce import Report


class VRPO(Algorithm):
    """DPO whose log-likelihoods are Monte Carlo ELBOs (sums over tokens, nats, each text's own length).

    With policy equal to reference the margin is exactly zero draw by draw, so the loss starts at log 2. The estimate
    of the loss is biased by the noise of the margin (the log-sigmoid is not linear); more draws reduce it.

    Source: Zhu et al., LLaDA 1.5, https://arxiv.org/abs/2505.19223. One mask per level and draws shared between policy
    and reference (the paper's "antithetic sampling") are not options but how it works; stratified levels are ours.
    """

    source: ClassVar[Literal["text", "pairs", "rollouts"]] = "pairs"
    citation: ClassVar[str] = (
        "@article{zhu2025llada15, title={LLaDA 1.5: Variance-Reduced Preference Optimization for Large Language "
        "Diffusion Models}, author={Zhu, Fengqi and Wang, Rongzhen and Nie, Shen and Zhang, Xiaolu and Wu, Chunwei and "
        "Hu, Jun and Zhou, Jun and Chen, Jianfei and Lin, Yankai and Wen, Ji-Rong and Li, Chongxuan}, journal={arXiv "
        "preprint arXiv:2505.19223}, year={2025}}"
    )

    type: Literal["vrpo"] = "vrpo"
    beta: Annotated[float, Field(gt=0)] = 0.2
    """Strength of the pull towards the reference, per nat of margin."""
    num_draws: Annotated[int, Field(ge=1)] = 8
    """Views per text and update."""
    corruption: Annotated[ElboCorruption, Field(discriminator="type")] = FixedCountSettings()
    """How views are noised."""
    sft_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of an added negative ELBO per token of the chosen text."""

    @model_validator(mode="after")
    def _check_draws(self) -> VRPO:
        check_draws(self.corruption, self.num_draws)
        return self

    @property
    def needs_reference(self) -> bool:
        return True

    def views(self, sequences: Sequences, keys: Int64[Tensor, " B"], mask_id: int) -> Views:
        return self.corruption.build().views(sequences, self.num_draws, keys, mask_id)

    def estimates(self, batch: Batch, logp: Float[Tensor, "R N"]) -> Float64[Tensor, "B M"]:
        return estimates_of(self.corruption, batch, logp)

    def count(self, batch: Batch) -> float:
        return len(batch.sequences) / 2

    def loss(self, batch: Batch, scores: Scores) -> Loss:
        from dllm_rl.diffusion.likelihood import elbo_draws
        from dllm_rl.objectives.preference import dpo_loss
        from dllm_rl.objectives.reduce import mean_of

        assert batch.reference_logp is not None, "the trainer scores the reference for algorithms that need it"
        rows = len(batch.sequences)
        policy = elbo_draws(scores.logp, batch.views, rows).mean(-1)
        reference = elbo_draws(batch.reference_logp, batch.views, rows).mean(-1)
        policy_margin, reference_margin = policy[0::2] - policy[1::2], reference[0::2] - reference[1::2]
        per_pair = dpo_loss(policy_margin, reference_margin, beta=self.beta)
        chosen_per_token = policy[0::2] / batch.sequences.scored.sum(-1)[0::2]
        total = (per_pair - self.sft_coefficient * chosen_per_token).sum()
        gain = (policy - reference).detach()
        return Loss(
            total,
            {
                "preference/accuracy": mean_of((policy_margin > reference_margin).double()),
                "preference/margin": mean_of((policy_margin - reference_margin).detach()),
                "preference/chosen_gain": mean_of(gain[0::2]),
                "preference/rejected_gain": mean_of(gain[1::2]),
            },
        )

    def diagnose(self, batch: Batch, scores: Scores) -> Mapping[str, Report]:
        from dllm_rl.objectives.reduce import mean_of, variance_of_mean

        assert batch.reference_logp is not None
        gains = self.estimates(batch, scores.logp) - self.estimates(batch, batch.reference_logp)
        if gains.shape[1] == 1:
            return {}
        variance = variance_of_mean(gains)
        margin = mean_of(variance[0::2] + variance[1::2])  # the two texts' draws are independent
        return {**super().diagnose(batch, scores), "preference/margin_variance": margin}
