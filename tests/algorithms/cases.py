"""Micro-batches with made-up numbers, one per algorithm and setting that a recipe can name."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dllm_rl.algorithms import (
    CJGRPO,
    IGPO,
    MDPO,
    SFT,
    VRPO,
    Algorithm,
    Batch,
    CoGRPO,
    DiffuGRPO,
    DUltra,
    MaskGRPO,
    PlannerImitation,
    Scores,
)
from dllm_rl.algorithms.base import Material
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.rng import sample_keys
from dllm_rl.samplers.generate import generate
from tests.samplers.schedules import drifting
from tests.training.small import SmallDenoiser

MASK = 6
ELBO = {"type": "fixed_count"}
ALGORITHMS: dict[str, Algorithm] = {
    "sft": SFT(),
    "sft_four_draws_per_token": SFT(num_draws=4, reduction="token"),
    "vrpo": VRPO(num_draws=3, beta=0.7),
    "vrpo_complementary_with_sft": VRPO(num_draws=4, corruption={"type": "complementary"}, sft_coefficient=0.3),
    "diffu_grpo": DiffuGRPO(),
    "diffu_grpo_released": DiffuGRPO(reduction="local_token"),
    "diffu_grpo_elbo": DiffuGRPO(corruption=ELBO, num_draws=3, reduction="token", clip_low=0.2, clip_high=0.3),
    "diffu_grpo_sequence": DiffuGRPO(ratio_level="sequence", kl_coefficient=0),
    "cj_grpo": CJGRPO(),
    "cj_grpo_step_ratios": CJGRPO(ratio_level="step", clip_low=0.2, clip_high=0.3, kl_estimator="k2"),
    "cj_grpo_token": CJGRPO(reduction="token", kl_coefficient=0),
    "cj_grpo_sum_step_ratios": CJGRPO(reduction="sum", ratio_level="step"),
    "cj_grpo_sequence_ratios": CJGRPO(reduction="token", ratio_level="sequence", kl_coefficient=0),
    "mask_grpo": MaskGRPO(updates_per_rollout=3),
    "mask_grpo_sequence": MaskGRPO(ratio_level="sequence", reduction="token", kl_coefficient=0),
    "diffu_grpo_sequence_coupled": DiffuGRPO(
        ratio_level="sequence", corruption={"type": "complementary"}, num_draws=4, kl_coefficient=0
    ),
    "mdpo": MDPO(kept_steps=2),
    "mdpo_plain": MDPO(kept_steps=2, confidence_weight=False, level_weight=False, kl_coefficient=0),
    "igpo": IGPO(entropy_share=0.5),
    "igpo_token_elbo": IGPO(
        ratio_level="token", corruption=ELBO, num_draws=3, reduction="token", kl_coefficient=0, entropy_share=0.5
    ),
    "co_grpo_network": CoGRPO(network_updates=1, schedule_updates=0),
    "dultra": DUltra(kl_coefficient=0.1),
    "dultra_factors_by_steps": DUltra(ratio_level="factors", reduction="mean_active_steps", clip_high=0.3),
    "dultra_factors_sum": DUltra(ratio_level="factors", reduction="sum", kl_coefficient=0.1, clip_high=0.3),
    "dultra_published": DUltra(forced_rule="published", advantage_floor=0.1),
    "planner_imitation": PlannerImitation(),
    "planner_imitation_published": PlannerImitation(objective="bce"),
    "diffu_grpo_sequence_elbo": DiffuGRPO(ratio_level="sequence", corruption=ELBO, num_draws=3, kl_estimator="k2"),
}


def make_material(algorithm: Algorithm) -> Material:
    """Four sequences, of different lengths unless they are whole rollouts; or two rollouts, two steps of each kept."""
    prompts, keys = [[1, 2], [1, 2], [3], [3]], sample_keys(3, torch.arange(4))
    if isinstance(algorithm, MDPO):
        way = {"sampler": "rcr", "steps": 4, "temperature": 2.0, "record_predictions": True}
        rollout = generate(SmallDenoiser(seed=2), prompts[:2], gen_length=4, **way)
        reward = torch.tensor([[[0.0, 1.0, 0.5, 0.25], [0.0, 0.5, 1.0, 0.25]]])
        credit = algorithm.step_credit(reward, torch.tensor([rollout.nfe]))
        return Material(rollout.sequences(), keys[:2], trajectory=rollout, credit=credit)
    if isinstance(algorithm, CoGRPO):
        way = {"sampler": "schedule", "learned": "commit temperature", "temperature": 2.0, "sigma": 1.0}
        rollout = generate(drifting(actions=2, head=2, longest=5, words=MASK), prompts, gen_length=3, **way)
        assert len(set(rollout.nfe)) > 1, "rows should differ in how many steps they took"
        return Material(rollout.sequences(), keys, trajectory=rollout)
    if isinstance(algorithm, CJGRPO):
        way = {"sampler": "threshold", "threshold": 0.3, "temperature": 2.0}
        rollout = generate(SmallDenoiser(seed=2), prompts, gen_length=4, **way)
        assert len(set(rollout.nfe)) > 1, "rows should differ in how many steps they took"
        return Material(rollout.sequences(), keys, trajectory=rollout)
    if algorithm.head == "planner":
        way = {"sampler": "planner", "planner_temperature": 0.8, "temperature": 0.7, "block_length": 2}
        rollout = generate(SmallDenoiser(seed=2), prompts, gen_length=4, **way)
        assert len(set(rollout.nfe)) > 1, "rows should differ in how many steps they took"
        return Material(rollout.sequences(), keys, trajectory=rollout)
    if isinstance(algorithm, IGPO):
        hints = [[None, 4, 5, None, 3], [None] * 5, [2, 2, None, None, None], [1, 3, 4, None, 5]]
        rollout = generate(SmallDenoiser(seed=2), prompts, gen_length=5, sampler="rl", temperature=2.0, fixed=hints)
        return Material(rollout.sequences(), keys, trajectory=rollout)
    completions = [[4, 5, 0], [5, 0], [1, 2, 3, 0], [4, 0]]
    return Material(sequences_from_ids(prompts, completions, pad_id=0), keys)


def make_batch(algorithm: Algorithm, *, moved: bool = True) -> Batch:
    """A micro-batch of them; `moved`: the policy has left the behaviour policy."""
    material = make_material(algorithm)
    batch = algorithm.prepare(material, material.keys, MASK)
    views = batch.views
    generator = torch.Generator().manual_seed(1)
    noise = lambda: -torch.rand(views.canvas.shape, generator=generator, dtype=torch.float64) * 3  # noqa: E731
    if algorithm.needs_entropy(material):
        batch = algorithm.filtered(material, batch, -noise() * views.scored)
        views = batch.views
    if algorithm.source == "rollouts":
        advantage = torch.tensor([0.5, -0.25, 1.0, -2.0], dtype=torch.float64)
        batch = replace(batch, advantage=advantage, behaviour_logp=noise() if moved else batch.behaviour_logp)
    if algorithm.needs_reference:
        batch = replace(batch, reference_logp=noise() * views.scored)
    if batch.behaviour_logp is not None:
        batch = replace(batch, behaviour_logp=batch.behaviour_logp * views.scored)
    if moved and algorithm.head == "planner" and algorithm.needs_behaviour:
        batch = replace(batch, selection_logp=noise()[:, 0])
    return batch


def make_scores(batch: Batch, seed: int = 2) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    shape, view = batch.views.canvas.shape, torch.arange(len(batch.views))
    logp = -torch.rand(shape, generator=generator, dtype=torch.float64) * 3 * batch.views.scored
    if batch.views.open is None:
        return Scores(logp.requires_grad_(), view)
    plan = torch.randn(shape, generator=generator, dtype=torch.float64) * batch.views.open
    return Scores(logp.requires_grad_(), view, plan.requires_grad_())


def of_views(scores: Scores, view: Tensor) -> Scores:
    """The scores of some views, which are then numbered as a part of the same batch."""
    return Scores(scores.logp[view], view, None if scores.plan is None else scores.plan[view])
