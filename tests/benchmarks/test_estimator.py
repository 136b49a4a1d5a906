"""`benchmarks/estimator.py`: the pieces that the numbers rest on, and a small run of the whole."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import estimator, laws
from dllm_rl.diffusion import elbo_draws, exact_elbo, score_views
from dllm_rl.diffusion.corruption import Balanced
from dllm_rl.models import DiffusionModel
from dllm_rl.rng import sample_keys
from tests.diffusion.tabular import Tabular

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = estimator.Answers([[1, 2], [3]], [[4, 5, 6], [2, 2, 1]])


def test_tables_give_the_exact_elbo_through_every_law_without_bias(tiny: DiffusionModel) -> None:
    means = laws.size_means(estimator.token_tables(tiny, ANSWERS).sum(-1))
    exact = [exact_elbo(tiny, *pair) for pair in zip(ANSWERS.prompts, ANSWERS.completions, strict=True)]
    for name, make in estimator.LAWS.items():
        if not name.startswith("Bernoulli"):
            assert make(3, 8).expectation(means).tolist() == pytest.approx(exact, abs=1e-5)


def test_probabilities_of_writing_in_random_order_sum_to_one() -> None:
    """Over all texts of a model that can be enumerated; orders and draws are those of the sampler."""
    texts = [list(text) for text in product(range(3), repeat=3)]
    answers = estimator.Answers([[]] * 27, texts)
    transform = estimator.Transform(forbidden_ids=(3,))
    logp = estimator.random_order_logp(estimator.token_tables(Tabular(), answers, transform))  # type: ignore[arg-type]
    assert np.exp(logp).sum() == pytest.approx(1.0, abs=1e-12)


def test_the_last_tokens_are_asked_for_given_those_before() -> None:
    assert ANSWERS.last(1) == estimator.Answers([[1, 2, 4, 5], [3, 2, 2]], [[6], [1]])


def test_inner_products_of_gradients_are_those_of_the_elbos_gradient(tiny: DiffusionModel) -> None:
    """Through every view in one graph: the squared length of the exact gradient, and of one row of draws."""
    products = estimator.gradient_products(tiny, [1, 2], [4, 5, 6])
    sequences, views = estimator.views_of_all_sets(estimator.Answers([[1, 2]], [[4, 5, 6]]), tiny.spec.mask_id)
    drawn = Balanced().views(sequences, 8, sample_keys(0, torch.arange(1)), tiny.spec.mask_id)
    by_draws, by_sets = np.zeros(8), 1 / (laws.hidden_sizes(3) * np.array([1, 3, 3, 3, 3, 3, 3, 1])).clip(1)
    for scored, weight in zip(drawn.scored[:, -3:], drawn.weight.amax(-1), strict=True):
        by_draws[int((scored * torch.tensor([1, 2, 4])).sum())] += float(weight) / 8
    by_sets[0] = 0.0
    for chosen, coefficients in ((drawn, by_draws), (views, by_sets)):
        logp = score_views(tiny, sequences, chosen, views_per_forward=8).logp
        value = elbo_draws(logp, chosen, 1).mean() if chosen is drawn else logp.sum(-1).double() @ torch.tensor(by_sets)
        gradient = torch.autograd.grad(value, list(tiny.network.parameters()))
        length = sum(float(part.double().square().sum()) for part in gradient)
        assert coefficients @ products @ coefficients == pytest.approx(length, rel=1e-4)


def test_intervals_hold_the_ratio_of_means() -> None:
    above, below = np.array([1.0, 2.0, 3.0, 10.0]), np.array([2.0, 4.0, 6.0, 4.0])
    found = estimator.resampled(above, below)
    assert found["ratio"] == pytest.approx(1.0)
    assert found["median"] == pytest.approx(0.5)
    assert 0.5 <= found["low"] < 1.0 < found["high"] <= 2.5


@pytest.mark.slow
def test_a_small_run_writes_its_table_its_numbers_and_its_figure(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/estimator.py", "--quick", "--out", str(tmp_path)]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    facts = json.loads((tmp_path / "estimator.json").read_text(encoding="utf-8"))
    assert (tmp_path / "estimator.png").read_bytes().startswith(b"\x89PNG")
    assert all(f"| {name} |" in shown for name in estimator.LAWS)
    assert [each["update"] for each in facts["margins"]] == [1, 2]
    for each in facts["cases"]:
        variances = {name: found["variance"] for name, found in each["corruptors"].items()}
        assert variances["balanced"] < variances["fixed count, stratified"] <= variances["fixed count, independent"]
    assert all(math.isfinite(each["squared_length"]) for each in facts["gradients"])
    assert facts["margins"][1]["sampled"]["balanced"]["ratio"] < 0.1  # two updates from the reference
