"""The method written out in docs/new_method.md is complete: it keeps the contracts, is its formula, and learns."""

from __future__ import annotations

import importlib.util
import re
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.rollouts.text import decode_until_eos
from dllm_rl.training.backward import backward, score_group, view_groups
from dllm_rl.training.data import PromptRow
from dllm_rl.training.source import RolloutSource
from dllm_rl.training.trainer import DiffusionTrainer
from tests.algorithms.cases import ELBO, make_batch, make_scores
from tests.structure.test_methods import code_lines
from tests.training.small import SmallDenoiser

PAGE = Path(__file__).resolve().parents[2] / "docs/new_method.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert code_lines(block) < 60
    file = tmp_path_factory.mktemp("method") / "wd1.py"
    file.write_text(block, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("wd1_of_the_page", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_its_weights_and_its_loss_are_the_papers(page: ModuleType) -> None:
    algorithm = page.WD1(corruption=ELBO, num_draws=3, sharpness=1.5)
    reward = torch.tensor([[0.0, 1.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0]], dtype=torch.float64)
    weight = algorithm.advantages(reward)
    scaled = 1.5 * (reward[0] - reward[0].mean()) / reward[0].std()
    up, down = scaled.exp(), (-scaled).exp()
    torch.testing.assert_close(weight[0], up / up.sum() - down / down.sum())
    assert torch.equal(weight[1], torch.zeros(4, dtype=torch.float64)), "equal rewards teach nothing"
    batch = replace(make_batch(algorithm), advantage=weight[0])
    scores = make_scores(batch)
    elbo = (batch.views.weight * scores.logp).sum(1).view(4, 3).mean(1)
    torch.testing.assert_close(algorithm.loss(batch, scores).total, -(weight[0] * elbo).sum())
    assert set(algorithm.diagnose(batch, scores)) == {"likelihood/estimate_variance"}


def test_its_grouped_backward_is_the_joint_graph(page: ModuleType) -> None:
    algorithm = page.WD1(corruption=ELBO, num_draws=3)
    batch, denoiser = make_batch(algorithm), SmallDenoiser()
    everything = torch.arange(len(batch.views))
    loss = algorithm.loss(batch, score_group(denoiser, batch, everything)).total
    expected = torch.autograd.grad(loss, list(denoiser.parameters()))
    backward(
        algorithm,
        batch,
        denoiser,
        denoiser,
        groups=view_groups(len(batch.views), 2),
        scale=1.0,
        group_context=lambda last: nullcontext(),
        back_propagate=lambda objective: objective.backward(),
    )
    for wanted, parameter in zip(expected, denoiser.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


def test_it_learns(page: ModuleType, tiny: DiffusionModel, tmp_path: Path) -> None:
    def small_ids(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [sum(token < 20 for token in ids) / len(ids) for ids in completion_ids]

    algorithm = page.WD1()
    engine = LocalEngine(tiny, RolloutSettings(gen_length=4, steps=2))
    rows = [PromptRow([40 + i], f"p{i}", {}) for i in range(4)]
    decode, device = decode_until_eos(tiny), torch.device("cpu")
    source = RolloutSource(rows, 0, engine, RewardPanel([small_ids]), algorithm, 8, decode, device)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        max_steps=15,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
    )
    trainer = DiffusionTrainer(model=tiny, algorithm=algorithm, source=source, args=arguments, views_per_forward=64)
    trainer.train()
    rewards = [line["reward/mean"] for line in trainer.state.log_history if "reward/mean" in line]
    assert sum(rewards[:3]) / 3 < 0.2 and sum(rewards[-3:]) / 3 > 0.45, rewards
