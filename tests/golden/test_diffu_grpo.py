"""The numbers of d1's trainer, from the token log-probs that it recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dllm_rl.diffusion.corruption import FullyHidden
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.objectives import clipped_surrogate, group_advantages, log_ratio, masked_mean
from dllm_rl.objectives.kl import kl
from dllm_rl.rng import sample_keys


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shared / "golden/diffu_grpo.json").read_text())
    return content


def test_advantages(golden: dict[str, Any]) -> None:
    assert len(golden["advantages"]) >= 10
    for case in golden["advantages"]:
        per_function = torch.tensor([[r or 0.0 for r in row] for row in case["rewards_per_func"]])  # None counts as 0
        reward = (per_function * torch.tensor(case["reward_weights"])[:, None]).sum(0)
        advantage = group_advantages(reward.view(-1, case["num_generations"]))
        assert advantage.flatten().tolist() == pytest.approx(case["d1_advantages"], abs=1e-5), case["name"]


def test_scaled_advantages_are_the_usual_ones_without_their_eps(golden: dict[str, Any]) -> None:
    for case in golden["advantages"]:
        scaled = case["formula_(r-mean)/(std+1e-4)"]
        if case["num_generations"] == 1 or None in [r for row in case["rewards_per_func"] for r in row]:
            continue
        reward = (torch.tensor(case["rewards_per_func"]) * torch.tensor(case["reward_weights"])[:, None]).sum(0)
        groups = reward.view(-1, case["num_generations"]).float()
        std = torch.tensor(case["group_std_unbiased"])
        ours = group_advantages(groups, scale="group_std").flatten() * std / (std + 1e-4)
        assert ours.tolist() == pytest.approx(scaled, abs=2e-4), case["name"]


def test_loss_kl_and_clip_ratio(golden: dict[str, Any]) -> None:
    checked = 0
    for case in golden["cases"]:
        scored = torch.tensor(case["completion_mask"]).bool()
        advantage = torch.tensor(case["advantages"])
        eps, beta = case["hyper"]["epsilon"], case["hyper"]["beta"]
        for seen in case["iterations"]:
            logp, old = torch.tensor(seen["per_token_logps"]), torch.tensor(seen["old_per_token_logps"])
            loss = -clipped_surrogate(logp, old, advantage, scored, clip_low=eps, clip_high=eps)
            if beta:
                distance = kl(logp, torch.tensor(seen["ref_per_token_logps"]), "k3")
                assert float(masked_mean(distance, scored).value) == pytest.approx(seen["kl"], rel=1e-4)
                loss = loss + beta * distance
            assert float(masked_mean(loss, scored).value) == pytest.approx(seen["loss"], rel=1e-4, abs=1e-6)
            # d1 counts where min() takes the ratio as it is though the clip would change it, which is not clipping.
            ratio = log_ratio(logp, old, scored).exp()
            plain, bounded = ratio * advantage[:, None], ratio.clamp(1 - eps, 1 + eps) * advantage[:, None]
            counted = masked_mean((plain < bounded).float(), scored)
            assert float(counted.value) == pytest.approx(seen["clip_ratio"], abs=1e-6)
            checked += 1
    assert checked >= 8


def test_what_the_model_saw_is_a_fully_hidden_view(golden: dict[str, Any]) -> None:
    """Same canvas wherever nothing is drawn, and the same kind of prompt noise wherever something is."""
    prompts, completions = golden["prompt_ids"], golden["completion_ids"]
    sequences = sequences_from_ids(prompts, completions, golden["eos_id"])
    keys = sample_keys(0, torch.arange(len(prompts)))
    ours = FullyHidden(prompt_noise=0.3).views(sequences, 1, keys, golden["mask_id"])
    for case in golden["cases"]:
        for seen in case["iterations"]:
            theirs = torch.tensor(seen["masked_input"])
            assert torch.equal(theirs[sequences.completion], ours.canvas[sequences.completion])
            kept = theirs != golden["mask_id"]
            assert torch.equal(theirs[kept], sequences.tokens[kept])
