"""diffu-GRPO: a clipped policy gradient on one-step (or ELBO) scores of sampled completions."""

from __future__ import annotations

from typing import ClassVar, Literal

from dllm_rl.algorithms.on_views import ScoredOnViews


class DiffuGRPO(ScoredOnViews):
    """Group-relative policy optimisation whose token scores come from views instead of a causal factorisation.

    With the default corruption each token is scored once, the whole completion hidden and a few prompt tokens hidden
    too (d1's mean-field estimate). With an ELBO corruption the same objective runs on ELBO views. Neither is the
    probability of the sampled trajectory: the ratio measures how far the scores moved, not the rollout policy.

    Source: Zhao et al., d1, https://arxiv.org/abs/2504.12216, eq. 2-4. Deviations from the released code, each of
    which an option brings back: the loss averages per sequence, then over sequences, as eq. 4 says (`reduction`); all
    mu prompt masks are used (`mask_schedule`). Always: behaviour and policy are scored alike, in float32, without
    dropout, on draws that belong to a sample and not to a process.
    """

    citation: ClassVar[str] = (
        "@article{zhao2025d1, title={d1: Scaling Reasoning in Diffusion Large Language Models via Reinforcement "
        "Learning}, author={Zhao, Siyan and Gupta, Devaansh and Zheng, Qinqing and Grover, Aditya}, journal={arXiv "
        "preprint arXiv:2504.12216}, year={2025}}"
    )

    type: Literal["diffu_grpo"] = "diffu_grpo"
    mask_schedule: Literal["distinct", "released"] = "distinct"
    """"released" indexes the mu view sets by the micro-step counter, as the released code does: a micro-batch then
    cycles through only mu / gcd(mu, accumulation) of them."""

    def iteration_index(self, iteration: int, micro_batch: int, num_micro_batches: int) -> int:
        if self.mask_schedule == "distinct":
            return iteration
        return (iteration * num_micro_batches + micro_batch + 1) % self.updates_per_rollout
