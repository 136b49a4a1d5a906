"""Exact ELBOs of a tiny random LLaDA, enumerated with the published code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dllm_rl.diffusion.corruption import CORRUPTORS
from dllm_rl.diffusion.likelihood import elbo, exact_elbo

if TYPE_CHECKING:
    from dllm_rl.models import DiffusionModel


@pytest.fixture(scope="module")
def model(shared: Path) -> DiffusionModel:
    from dllm_rl.models import load_model

    return load_model(str(shared / "golden/llada_tiny_gqa"))


@pytest.fixture(scope="module")
def cases(shared: Path) -> list[dict[str, Any]]:
    everything = json.loads((shared / "golden/likelihood.json").read_text())["cases"]
    kept = [case for case in everything if case["cfg_scale"] == 0.0]  # the public ELBO is that of the unguided model
    assert len(kept) >= 10
    return kept


def test_enumeration(model: DiffusionModel, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        assert exact_elbo(model, case["prompt"], case["answer"]) == pytest.approx(
            case["exact"]["a_loglik"], abs=1e-3
        ), case["name"]


def test_sampling_with_every_corruptor(model: DiffusionModel, cases: list[dict[str, Any]]) -> None:
    """The mean of 256 draws, within 4 standard errors by the published one-draw variance or the draws' own."""
    case = next(case for case in cases if case["name"] == "L4")
    exact = case["exact"]
    for name in [name for name in CORRUPTORS if name != "fully_hidden"]:
        estimate = elbo(model, [case["prompt"]], [case["answer"]], num_draws=256, corruptor=name, views_per_forward=256)
        expected = exact["b_eps1e-3"]["loglik"] if name == "bernoulli" else exact["a_loglik"]
        variance = exact["b_eps1e-3"]["var_single"] if name == "bernoulli" else exact["a_var_single"]
        assert abs(float(estimate.value) - expected) < 4 * math.sqrt(variance / 256), name
        assert abs(float(estimate.value) - expected) < 4 * float(estimate.std_error), name


def test_the_variance_of_a_single_draw(model: DiffusionModel, cases: list[dict[str, Any]]) -> None:
    case = next(case for case in cases if case["name"] == "L3")
    draws = elbo(model, [case["prompt"]] * 600, [case["answer"]] * 600, num_draws=1, views_per_forward=600).draws
    assert float(draws.var()) == pytest.approx(case["exact"]["a_var_single"], rel=0.2)


def test_a_batch_of_unequal_lengths_equals_its_rows(model: DiffusionModel, cases: list[dict[str, Any]]) -> None:
    prompts, answers = [case["prompt"] for case in cases], [case["answer"] for case in cases]
    together = elbo(model, prompts, answers, num_draws=4).value
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        alone = elbo(model, [prompt], [answer], num_draws=4, sample_ids=[row]).value
        assert float(alone) == pytest.approx(float(together[row]), rel=1e-5), cases[row]["name"]
