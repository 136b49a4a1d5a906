"""EOSER, ASS, PC-Sampler and its baselines against outputs of the published code, token for token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.models import DiffusionModel, load_model
from dllm_rl.samplers.generate import generate
from dllm_rl.samplers.position_aware import Background, PositionAware
from dllm_rl.samplers.processors import AscendingRise, Factor, LinearRise
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.quota import MaskRatio
from tests.samplers.test_parts import standing

SAMPLERS = {
    "eoser.eoser_generate": "eoser",
    "eoser.ass_generate": "ass",
    "eoser.eoser_ass_generate": "eoser_ass",
    "pcs.generate_with_pc_sampler": "pc",
    "pcs.generate_with_linear_position": "pc_linear",
    "pcs.generate_with_entropy": "entropy",
    "pcs.generate_with_margin": "margin",
    "pcs.generate_with_eb_sampler": "eb",
}
LEFT_OUT = {
    "steps of the block": "EOSER's factor rises over all steps; the published code starts again with every block and "
    "still divides by all steps, so with four blocks it never passes a quarter of the way",
    "written positions": "confidence is scaled to reach from 0 to 1 over the positions to choose from; the published "
    "code scales over the written ones too, with the probability of what the network would now say there and the "
    "frequency of what stands there",
    "no blocks": "entropy and margin are compared within the block; the published code forgets to look only there, and "
    "then leaves positions unwritten",
}


def reason_to_leave_out(case: dict) -> str | None:
    settings = case["settings"]
    several = settings.get("block_length", settings["gen_length"]) < settings["gen_length"]
    if case["algo"] == "eoser.eoser_generate" and several and settings["eos_min_gamma"] < 1:
        return "steps of the block"
    if case["algo"] == "pcs.generate_with_linear_position":
        return "written positions"
    return (
        "no blocks" if case["algo"] in ("pcs.generate_with_entropy", "pcs.generate_with_margin") and several else None
    )


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict:
    return json.loads((shared / "golden/samplers.json").read_text())


@pytest.fixture(scope="module")
def model(shared: Path) -> DiffusionModel:
    return load_model(shared / "golden/llada_tiny_gqa")


@pytest.fixture(scope="module")
def background(golden: dict, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("background") / "baseline.json"
    path.write_text(json.dumps(golden["pc_sampler_baseline_file"]))
    return str(path)


@pytest.fixture(scope="module")
def rollouts(golden: dict, model: DiffusionModel, background: str) -> list[tuple[dict, Trajectory]]:
    """Every stable case and what we make of it; cases that differ in their prompt alone run as one batch."""

    def way(case: dict) -> str:
        return case["algo"] + json.dumps(case["settings"])

    cases = [case for case in golden["cases"] if case["algo"] in SAMPLERS and case["stable"]]
    made = []
    for _, alike in groupby(sorted(cases, key=way), key=way):
        group = list(alike)
        prompts = [golden["prompts"][case["prompt"]] for case in group]
        assert all(len(prompt) == 1 for prompt in prompts)
        settings: dict[str, Any] = dict(group[0]["settings"], sampler=SAMPLERS[group[0]["algo"]])
        if settings["sampler"] in ("pc", "pc_linear"):
            settings["background"] = background
        out = generate(model, [prompt[0] for prompt in prompts], **settings)
        made.extend((case, out.select([row])) for row, case in enumerate(group))
    return made


def published(case: dict) -> tuple[list[int], list[int]]:
    """Completion and order."""
    start = len(case["ids"][0]) - case["settings"]["gen_length"]
    return case["ids"][0][start:], case["unmask_step"][0][start:]


def made_by(out: Trajectory) -> tuple[list[int], list[int]]:
    return out.completions[0], out.reveal_step[0].tolist()


def agrees(case: dict, out: Trajectory) -> bool:
    return published(case) == made_by(out) and out.nfe == [case["forwards"]]


@pytest.mark.slow
def test_tokens_order_and_cost_are_those_of_the_published_samplers(rollouts):
    compared = [pair for pair in rollouts if reason_to_leave_out(pair[0]) is None]
    assert [(case["algo"], case["prompt"], case["settings"]) for case, out in compared if not agrees(case, out)] == []
    assert Counter(SAMPLERS[case["algo"]] for case, _ in compared) == {
        "eoser": 20,
        "ass": 20,
        "eoser_ass": 42,
        "pc": 21,
        "entropy": 2,
        "margin": 2,
        "eb": 4,
    }


Confidence = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""Probabilities [L, V] and tokens drawn [L] of the completion, its tokens [L], positions to choose from [L], the step
in this block; [L] or a number for each."""


def transcribed(
    model: DiffusionModel, prompt: list[int], settings: dict, confidence: Confidence, whole: bool
) -> tuple[list[int], list[int]]:
    """Completion and order by the rule of all these samplers, greedily.

    Args:
        whole: choose from all of the completion, and not from the block.
    """
    length, mask = settings["gen_length"], model.spec.mask_id
    block = settings["block_length"]
    steps = settings["steps"] * block // length
    completion, order, forwards = torch.full((length,), mask), torch.full((length,), -1), 0
    for start in range(0, length, block):
        inside = (torch.arange(length) >= start) & (torch.arange(length) < start + block)
        left = int((completion[inside] == mask).sum())
        for step in range(steps):
            forwards += 1
            canvas = torch.tensor([[*prompt, *completion.tolist()]])
            p = model.logits(canvas)[0, len(prompt) :].softmax(dim=-1)
            drawn = p.argmax(dim=-1)
            candidates = (completion == mask) & (inside | torch.tensor(whole))
            score = confidence(p, drawn, completion, inside, step).masked_fill(~candidates, float("-inf"))
            chosen = score.argsort(descending=True, stable=True)[: left // steps + (step < left % steps)]
            completion[chosen], order[chosen] = drawn[chosen], forwards
    return completion.tolist(), order.tolist()


def of_blocks_steps(case: dict, eos_id: int, in_all: bool) -> Confidence:
    """EOSER with the step counted in this block, or in all."""
    settings = case["settings"]
    per_block = settings["steps"] * settings["block_length"] // settings["gen_length"]

    def confidence(p: Tensor, drawn: Tensor, tokens: Tensor, inside: Tensor, step: int) -> Tensor:
        low, high, last = settings["eos_min_gamma"], settings["eos_max_gamma"], settings["steps"] - 1
        block = int(inside.int().argmax()) // settings["block_length"]
        gamma = low + (high - low) * (step + (block * per_block if in_all else 0)) / last
        best = p.gather(1, drawn[:, None])[:, 0]
        return torch.where(drawn == eos_id, best * gamma, best)

    return confidence


def of_scaled(case: dict, frequency: Tensor, mask: int, over_written: bool) -> Confidence:
    """PC-Sampler's linear position with the scale taken over all positions of the block, or over the open ones."""

    def confidence(p: Tensor, drawn: Tensor, tokens: Tensor, inside: Tensor, step: int) -> Tensor:
        weight, alpha, block = (case["settings"][name] for name in ("lambd", "alpha", "block_length"))
        stands = torch.where(tokens == mask, drawn, tokens)
        c = (-p.gather(1, drawn[:, None])[:, 0] * (frequency[stands] + 1e-9).log()).clamp(max=alpha)
        scale = c[inside if over_written else inside & (tokens == mask)]
        spread = (scale.max() - scale.min()).clamp(min=1e-9)
        place = torch.arange(len(c)) % block
        return (1 - weight) * (c - scale.min()) / spread + weight * (block - place) / block

    return confidence


def of_prediction(case: dict) -> Confidence:
    """Negative entropy or margin."""

    def confidence(p: Tensor, drawn: Tensor, tokens: Tensor, inside: Tensor, step: int) -> Tensor:
        if case["algo"].endswith("entropy"):
            return (p * (p + 1e-12).log()).sum(dim=-1)
        first, second = p.topk(2, dim=-1).values.T
        return first - second

    return confidence


@pytest.mark.slow
@pytest.mark.parametrize("reason", LEFT_OUT)
def test_what_is_left_out_has_the_reason_named(golden, model, rollouts, reason):
    """The same rule is theirs with the error and ours without it, on every case left out."""
    cases = [(case, out) for case, out in rollouts if reason_to_leave_out(case) == reason]
    counts = golden["pc_sampler_baseline_file"]
    frequency = torch.full((model.config.vocab_size,), 1 / counts["num_token"])
    for token, count in counts["p_baseline_dict"].items():
        frequency[int(token)] = count / counts["num_token"]
    different = 0
    for case, out in cases:
        prompt = golden["prompts"][case["prompt"]][0]
        for error in (True, False):
            rule = {
                "steps of the block": of_blocks_steps(case, golden["eos_id"], in_all=not error),
                "written positions": of_scaled(case, frequency, golden["mask_id"], over_written=error),
                "no blocks": of_prediction(case),
            }[reason]
            whole = error and reason == "no blocks"
            found = transcribed(model, prompt, case["settings"], rule, whole)
            assert found == (published(case) if error else made_by(out)), (case["settings"], error)
        different += not agrees(case, out)
    assert (len(cases), different) == {
        "steps of the block": (4, 3),
        "written positions": (8, 7),
        "no blocks": (4, 4),
    }[reason]


def test_counts_of_a_mask_ratio(golden):
    cases = golden["mdpo_get_num_transfer_tokens_maskgit"]
    for case in cases:
        quota = MaskRatio(case["mode"], case["steps"])
        turns = torch.arange(case["steps"])
        rows = standing(case["length"], 0).select(torch.zeros_like(turns))
        assert quota(replace(rows, turn=turns)).tolist() == case["counts"], case
    assert {case["mode"] for case in cases} == {"linear", "cosine", "pow2", "pow3", "pow0.5", "log", "exp"}


def test_factors_of_eoser(golden):
    rises: dict[str, type[LinearRise] | type[AscendingRise]] = {"sampling": LinearRise, "ass_sampling": AscendingRise}
    for case in golden["eoser_confidence_factor"]:
        steps = case["total_steps"]
        factor: Factor = rises[case["function"]](case["eos_min_gamma"], case["eos_max_gamma"], steps)
        ours = [float(factor(replace(standing(4, 0), forwards=torch.tensor([step])))) for step in range(steps)]
        assert ours == pytest.approx(case["factor_by_step_idx"], rel=1e-6)


def test_scores_of_pc_sampler(golden, background):
    for case in golden["pc_sampler_function"]:
        p, token = torch.tensor(case["probabilities"]), torch.tensor(case["token_ids"])
        logits = torch.zeros(*p.shape, 128).scatter(-1, token[..., None], (p * 127 / (1 - p)).log()[..., None])
        row, index = torch.ones_like(token).nonzero(as_tuple=True)
        score = PositionAware(Background.load(background), float(case["lambda"]), float(case["alpha"]))
        proposal = Proposal(row, index, logits.flatten(0, 1), row)
        ours = score.of_tokens(proposal, standing(4, 0)).gather(1, token.flatten()[:, None]).exp()
        expected = torch.tensor(case["scores"]).flatten()
        torch.testing.assert_close(ours[:, 0], expected, rtol=2e-4, atol=1e-6)  # the code adds 1e-9 to frequencies
