"""MDPO's sampler, with and without remasking, against outputs of the published code, canvas by canvas."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from dllm_rl.diffusion.trajectory import Op, Trajectory
from dllm_rl.models import DiffusionModel, load_model
from dllm_rl.samplers.generate import generate


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict:
    return json.loads((shared / "golden/samplers.json").read_text())


@pytest.fixture(scope="module")
def model(shared: Path) -> DiffusionModel:
    return load_model(shared / "golden/llada_tiny_gqa")


@pytest.fixture(scope="module")
def rollouts(golden: dict, model: DiffusionModel) -> list[tuple[dict, Trajectory]]:
    cases = [case for case in golden["cases"] if case["algo"] == "mdpo.diffusion_generate" and case["stable"]]
    return [
        (case, generate(model, golden["prompts"][case["prompt"]], sampler="rcr", **case["settings"])) for case in cases
    ]


def test_every_case_is_compared_and_none_left_out(rollouts):
    assert Counter((case["settings"]["conf_alg"], case["settings"]["rcr"]) for case, _ in rollouts) == {
        ("llada", True): 13,
        ("llada", False): 7,
        ("entropy", True): 5,
        ("entropy", False): 5,
        ("topk_margin", True): 5,
        ("topk_margin", False): 5,
    }


def test_tokens_and_cost_are_those_of_the_published_sampler(rollouts):
    for case, out in rollouts:
        assert out.sequences().tokens.tolist() == case["ids"], case["settings"]
        assert out.nfe == [case["forwards"]], case["settings"]


def test_so_is_every_canvas_on_the_way(rollouts):
    """Where something is hidden again the case holds the canvases, else the step at which each token was written."""
    revised = 0
    for case, out in rollouts:
        canvases = [out.completion_canvas(step)[0].tolist() for step in range(out.num_steps + 1)]
        hidden = [canvas.count(out.mask_id) for canvas in canvases]
        assert hidden == [*case["masks_left_before_forward"], case["masks_left_final"]], case["settings"]
        again = any(b == out.mask_id != a for past, now in pairwise(canvases) for a, b in zip(past, now, strict=True))
        assert again == case["any_remasking"], case["settings"]
        if again:
            assert canvases == case["trajectory_row0"][: len(canvases)], case["settings"]
            revised += 1
        else:
            start = len(case["ids"][0]) - out.gen_length
            assert out.reveal_step[0].tolist() == case["unmask_step"][0][start:], case["settings"]
    assert revised == 22


def test_earlier_blocks_are_reopened_in_the_published_cases(rollouts):
    """Why the scope is the whole canvas: every case of several blocks has a token of a full block hidden again."""
    for case, out in rollouts:
        settings, events = case["settings"], out.events
        steps = settings["steps"] * settings["block_length"] // settings["gen_length"]
        block_then, block_of = (events.step - 1) // steps, events.position // settings["block_length"]
        reopened = (events.op == Op.REMASK) & (block_of < block_then)
        assert bool(reopened.any()) == (settings["rcr"] and block_then.max() > 0), settings


def test_within_blocks_the_published_tokens_would_be_others(golden, model, rollouts):
    cases = [pair for pair in rollouts if pair[0]["settings"]["rcr"]]
    several = [
        (case, out) for case, out in cases if (s := case["settings"])["gen_length"] == 2 * s["block_length"] == 16
    ]
    assert len(several) == 3
    for case, out in several:
        prompt = golden["prompts"][case["prompt"]]
        assert generate(model, prompt, sampler="rcr", scope="block", **case["settings"]).completions != out.completions
