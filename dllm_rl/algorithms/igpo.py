"""IGPO: where a whole group fails, some of its rollouts are written again around parts of a reference trace."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from dllm_rl.algorithms.base import Batch, Material
from dllm_rl.algorithms.corruption import AnyCorruption, FullyHiddenSettings
from dllm_rl.algorithms.hints import HintSettings
from dllm_rl.algorithms.on_views import ScoredOnViews

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64
    from torch import Tensor

    from dllm_rl.diffusion.views import Sequences


class IGPO(ScoredOnViews):
    """Group-relative policy optimisation on groups that inpainting has rescued.

    A group of G completions all of which are wrong has no gradient. For such a group G more are written, each with
    random chunks of a reference trace given and never with the answer, and up to `hints.replaced_share` of the group is
    replaced by those that are correct. Every token up to the first end of text is scored, given or drawn, on one view
    that hides the whole completion; of a row's given tokens only the most uncertain share learns.

    With s(y) the mean score of what is kept of y, the expected gradient of the first update after a rollout is that of
    J(theta) = E[(1/G) sum_i A_i s_theta(y_i)], the expectation over augmented groups as the weights before the update
    write them (tested by enumeration). It is not the gradient of the expected reward: hinted completions are drawn with
    tokens given and selected for being correct, which no ratio undoes; nor is s the sampler's likelihood. The ratio
    only measures how far the scores moved. With rewards 0 and 1 and a share rho of correct completions a group gives
    rho (1 - rho) (g_correct - g_wrong), g being mean gradients of s: nothing at rho 0 and 1, most at 1/2.

    Wrong to use without reference traces, or where being correct cannot be told from a reward.

    Source: Zhao et al., https://arxiv.org/abs/2509.10396, eq. 3-6 and section 3. Deviations from the released code: no
    answer in hints; the ratio and the mean are over kept positions (there the ratio averages over all, so that the
    filter stops no gradient); nothing after the end of text is trained; groups, not device batches, are rescued;
    rewards are judged once; random rows are replaced, not the first ones.
    """

    citation: ClassVar[str] = (
        "@article{zhao2025igpo, title={Inpainting-Guided Policy Optimization for Diffusion Large Language Models}, "
        "author={Zhao, Siyan and Liu, Mengchen and Huang, Jing and Liu, Miao and Wang, Chenyu and Liu, Bo and Tian, "
        "Yuandong and Pang, Guan and Bell, Sean and Grover, Aditya and Chen, Feiyu}, journal={arXiv preprint "
        "arXiv:2509.10396}, year={2025}}"
    )

    type: Literal["igpo"] = "igpo"
    clip_low: Annotated[float, Field(gt=0)] = 0.2
    """The ratio's lower bound is 1 - clip_low."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """The ratio's upper bound is 1 + clip_high."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the divergence from the reference; 0 saves scoring it."""
    ratio_level: Literal["token", "sequence"] = "sequence"
    """One ratio per token, or one per sequence from the mean log-ratio of its kept tokens."""
    corruption: Annotated[AnyCorruption, Field(discriminator="type")] = FullyHiddenSettings(prompt_noise=0.0)
    """How views are noised; the default shows the whole prompt, unlike d1."""
    hints: HintSettings = HintSettings()
    """Where hints come from, how much they show, and how many completions they replace."""
    entropy_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of a row's given tokens, those of greatest entropy, that learn (tau); at least one of them does."""

    @property
    def inpainting(self) -> HintSettings:
        return self.hints

    def scope(self, sequences: Sequences) -> Sequences:
        """Everything: which given tokens are scored is known in `prepare` only."""
        return sequences

    def prepare(self, material: Material, keys: Int64[Tensor, " B"], mask_id: int) -> Batch:
        """Views on which given tokens are scored like drawn ones."""
        given = _given(material)
        sequences = replace(material.sequences, scored=material.sequences.scored | given)
        sequences = super().scope(sequences)
        return Batch(sequences, self.views(sequences, keys, mask_id), material.advantage)

    def needs_entropy(self, material: Material) -> bool:
        return self.entropy_share < 1 and bool(_given(material).any())

    def filtered(self, material: Material, batch: Batch, entropy: Float[Tensor, "R N"]) -> Batch:
        """The batch with nothing scored where a given token is not among its row's most uncertain ones.

        Of n given tokens with a score max(1, floor(entropy_share * n)) are kept, of equal ones those to the left.
        """
        views, scored = batch.views, batch.sequences.scored
        times = scored.new_zeros(scored.shape, dtype=entropy.dtype).index_add(0, views.row, views.scored.to(entropy))
        mean = entropy.new_zeros(scored.shape).index_add(0, views.row, entropy) / times.clamp(min=1)
        given = _given(material)
        kept = scored & (~given | _most_uncertain(mean, given & (times > 0), self.entropy_share))
        on_views = views.scored & kept[views.row]
        views = replace(views, scored=on_views, weight=views.weight.masked_fill(~on_views, 0.0))
        return replace(batch, sequences=replace(batch.sequences, scored=kept), views=views)


def _given(material: Material) -> Bool[Tensor, "B N"]:
    """Tokens that were given and come before the end of the text."""
    from torch.nn.functional import pad

    trajectory = material.trajectory
    assert trajectory is not None, "rollouts have trajectories"
    return pad(trajectory.given & trajectory.written, (material.sequences.tokens.shape[1] - trajectory.gen_length, 0))


def _most_uncertain(
    entropy: Float[Tensor, "B N"], candidates: Bool[Tensor, "B N"], share: float
) -> Bool[Tensor, "B N"]:
    """max(1, floor(share * n)) of each row's n candidates, those of greatest entropy; none where there are none."""
    order = entropy.masked_fill(~candidates, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    count = (candidates.sum(-1).double() * share).floor().clamp(min=1)
    return candidates & (rank < count[:, None])
