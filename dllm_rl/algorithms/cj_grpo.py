"""CJ-GRPO: a clipped policy gradient that scores every token in the context in which it was written."""

from __future__ import annotations

from typing import ClassVar, Literal

from dllm_rl.algorithms.replayed import Replayed


class CJGRPO(Replayed):
    """Group-relative policy optimisation on the rollout's own steps: x_{s-1} to x_s for every s, replayed from its log.

    The tokens' behaviour log-probabilities are those that the rollout recorded, and everything is scored under the
    distribution that was drawn from (temperature, guidance, forbidden ids), so the ratio is 1 up to rounding as long as
    the policy is the one that wrote. Every token drawn counts, those after the end of text and those overwritten later
    too: they are what the sampler did. Memory is that of one group of views, whatever the number of steps.

    With the samplers whose likelihood is "exact" and is that of the draws alone (`rl`, `margin`, `entropy`, ...),
    reduction "sum", no KL and the leave-one-out baseline, the expected gradient on policy is that of the expected
    reward (tested by enumeration); the mean baseline gives (1 - 1/G) times it. With samplers that look at the draws
    (llada, eoser, ass, eoser_ass, ...) the choice of positions carries gradient too, the F term, which the paper and
    this class leave out.

    Source: Yang et al., https://arxiv.org/abs/2509.23924, algorithm 1 and section 4.2. Deviations: the algorithm box
    divides advantages by their deviation and does not clip; the released code does not divide and clips at 0.5, as here
    by default (`scale`, `clip_low`, `clip_high`). The mean over a step's tokens is each completion's own; the released
    code shares it over the batch, which is the same where all completions write equally many tokens a step, as in all
    its settings. Its rollouts, scores of the policy and of the reference at temperature 1 belong to one distribution
    only because it samples at temperature 1.
    """

    citation: ClassVar[str] = (
        "@article{yang2025taming, title={Taming Masked Diffusion Language Models via Consistency Trajectory "
        "Reinforcement Learning with Fewer Decoding Step}, author={Yang, Jingyi and Chen, Guanxu and Hu, Xuhao and "
        "Shao, Jing}, journal={arXiv preprint arXiv:2509.23924}, year={2025}}"
    )

    type: Literal["cj_grpo"] = "cj_grpo"
