"""One update of the trainer against the gradient of its mean loss, written as one graph."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from dllm_rl.algorithms import CJGRPO, IGPO, SFT, VRPO, Algorithm, DiffuGRPO, Scores
from dllm_rl.algorithms.base import Material
from dllm_rl.diffusion.replay import replay
from dllm_rl.errors import CheckpointError, DivergenceError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.lora import add_lora
from dllm_rl.samplers.generate import generate
from dllm_rl.toys.model import tiny_llada
from dllm_rl.training.backward import score_all, score_group, score_with_entropy
from dllm_rl.training.data import Example
from dllm_rl.training.source import ExampleSource, Harvest
from dllm_rl.training.trainer import DiffusionTrainer

TEXTS = [Example([40 + i], ([50 + i, 51, 97],)) for i in range(4)]
PAIRS = [Example([40 + i], ([50 + i, 97], [60 + i, 61, 97])) for i in range(4)]


def _trainer(
    model: DiffusionModel, algorithm: Algorithm, rows: list[Example], folder: Path, **more: Any
) -> DiffusionTrainer:
    source = ExampleSource(rows, 0, 97, torch.device("cpu"))
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        **{
            "max_steps": 1,
            "optim": "sgd",
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            **more,
        },
    )
    return DiffusionTrainer(model=model, algorithm=algorithm, source=source, args=arguments, views_per_forward=3)


@pytest.mark.parametrize(
    ("algorithm", "rows"),
    [(SFT(num_draws=3, reduction="token"), TEXTS), (SFT(), TEXTS), (VRPO(num_draws=2), PAIRS)],
    ids=["sft_token", "sft", "vrpo"],
)
def test_an_update_descends_the_mean_loss_of_all_its_rows(
    tiny: DiffusionModel, algorithm: Algorithm, rows: list[Example], tmp_path: Path
) -> None:
    tiny.make_reference_copy()
    before = copy.deepcopy(tiny)
    trainer = _trainer(tiny, algorithm, rows, tmp_path)
    trainer.train()
    batches = trainer._window.batches[0]  # type: ignore[union-attr]
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        everything = torch.arange(len(batch.views))
        total = total + algorithm.loss(batch, Scores(score_group(before, batch, everything).logp, everything)).total
    mean = total / sum(algorithm.count(batch) for batch in batches)
    mean.backward()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(mean.detach()), rel=1e-5)
    old = dict(before.network.named_parameters())
    for name, parameter in tiny.network.named_parameters():
        gradient = old[name].grad if old[name].grad is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(parameter.detach(), (old[name] - gradient).detach(), rtol=1e-4, atol=1e-6)


class _Prompts:
    """Made-up rollouts: four completions of two prompts."""

    def harvest(self, window: int, layout: Any, update: int) -> Harvest:
        source = ExampleSource(TEXTS, 0, 97, torch.device("cpu"))
        advantage = torch.tensor([1.0, -1.0], dtype=torch.float64)
        return Harvest(
            [Material(m.sequences, m.keys, advantage) for m in source.harvest(window, layout, update).material]
        )


def test_a_rollout_serves_mu_updates_each_on_views_of_its_own(tiny: DiffusionModel, tmp_path: Path) -> None:
    algorithm = DiffuGRPO(updates_per_rollout=3, corruption={"type": "fixed_count"}, num_draws=4)
    tiny.make_reference_copy()
    trainer = _trainer(tiny, algorithm, TEXTS, tmp_path, max_steps=6, learning_rate=0.02)
    trainer.source = _Prompts()
    opened = trainer._open(0, 2)
    first, second, third = (opened.batches[iteration][0] for iteration in range(3))
    canvases = [batch.views.canvas for batch in (first, second, third)]
    assert not any(torch.equal(a, b) for a, b in zip(canvases, [*canvases[1:], canvases[0]], strict=True))
    assert first.behaviour_logp is None
    for batch in (second, third):
        torch.testing.assert_close(batch.behaviour_logp, score_all(tiny, batch, 100).logp)
        torch.testing.assert_close(batch.reference_logp, batch.behaviour_logp)
    trainer.train()
    ratios = [line["policy/ratio"] for line in trainer.state.log_history if "policy/ratio" in line]
    assert len(ratios) == 6 and ratios[0] == ratios[3] == 1.0
    assert all(ratios[update] != 1.0 for update in (1, 2, 4, 5))


@pytest.mark.parametrize("draws_for", ["completion", "group"])
@pytest.mark.parametrize("corruption", [{"type": "fully_hidden", "prompt_noise": 0.5}, {"type": "fixed_count"}])
def test_a_group_may_share_its_draws(
    tiny: DiffusionModel, tmp_path: Path, draws_for: str, corruption: dict[str, Any]
) -> None:
    algorithm = DiffuGRPO(updates_per_rollout=2, corruption=corruption, draws_for=draws_for, kl_coefficient=0)
    rollout = generate(tiny, [list(range(20, 40))] * 3 + [list(range(40, 60))] * 3, gen_length=8, steps=2, sampler="rl")
    first = torch.tensor([0, 0, 0, 3, 3, 3])
    material = Material(rollout.sequences(), rollout.keys, torch.zeros(6).double(), rollout, first=first)
    trainer = _trainer(tiny, algorithm, TEXTS, tmp_path)
    hidden = [trainer._batch(material, iteration, 0, 1).views.canvas == tiny.spec.mask_id for iteration in (0, 1)]
    for each in hidden:
        alike = (each[:, None] == each[None]).all(2)
        expected = first[:, None] == first[None] if draws_for == "group" else torch.eye(6, dtype=torch.bool)
        assert torch.equal(alike, expected), "completions of the same length, and prompts apart"
    assert not (hidden[0] == hidden[1]).all(1).any(), "every update has views of its own"


def test_recorded_behaviour_is_used_in_every_iteration_and_never_scored_again(
    tiny: DiffusionModel, tmp_path: Path
) -> None:
    algorithm = CJGRPO(updates_per_rollout=2, kl_coefficient=0)
    rollout = generate(tiny, [[40], [41], [42]], gen_length=4, steps=2, sampler="rl", temperature=0.5)
    advantage = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)

    class Recorded:
        def harvest(self, window: int, layout: Any, update: int) -> Harvest:
            return Harvest([Material(rollout.sequences(), rollout.keys, advantage, rollout)])

    trainer = _trainer(tiny, algorithm, TEXTS, tmp_path, max_steps=2, learning_rate=0.5, gradient_accumulation_steps=1)
    trainer.source = Recorded()
    recorded = replay(rollout, rollout.sequences()).behaviour_logp
    opened = trainer._open(0, 1)
    assert all(torch.equal(batches[0].behaviour_logp, recorded) for batches in opened.batches)
    trainer.train()
    first, second = (line["policy/ratio"] for line in trainer.state.log_history if "policy/ratio" in line)
    assert first == pytest.approx(1.0, abs=1e-5) and abs(second - 1) > 1e-3


def test_what_the_entropies_leave_out_is_in_no_batch_and_old_scores_are_of_the_rest(
    tiny: DiffusionModel, tmp_path: Path
) -> None:
    algorithm = IGPO(updates_per_rollout=2, kl_coefficient=0, entropy_share=0.5)
    hints = [[50, 51, 52, None], [None, 60, None, 61], [None] * 4]
    rollout = generate(tiny, [[40], [41], [42]], gen_length=4, steps=2, sampler="rl", fixed=hints)
    material = Material(rollout.sequences(), rollout.keys, torch.tensor([1.0, -1.0, 0.5]).double(), rollout)
    trainer = _trainer(tiny, algorithm, TEXTS, tmp_path)
    for iteration in (0, 1):
        batch = trainer._batch(material, iteration, 0, 1)
        plain = algorithm.prepare(material, material.keys, tiny.spec.mask_id)
        entropy = score_with_entropy(tiny, plain, 3).entropy
        kept = algorithm.filtered(material, plain, entropy).views.scored
        assert torch.equal(batch.views.scored, kept) and kept.sum() < plain.views.scored.sum()
        if iteration == 0:
            assert batch.behaviour_logp is None
        else:
            torch.testing.assert_close(batch.behaviour_logp, score_all(tiny, batch, 3).logp)
            assert (batch.behaviour_logp[~kept] == 0).all()


def test_reports_are_added_over_micro_batches_before_they_are_divided(tiny: DiffusionModel, tmp_path: Path) -> None:
    """The second update from a rollout, its effective sample sizes and its estimates' variance recomputed by hand."""
    algorithm = DiffuGRPO(updates_per_rollout=2, corruption={"type": "fixed_count"}, num_draws=4, kl_coefficient=0)
    trainer = _trainer(tiny, algorithm, TEXTS, tmp_path, max_steps=2, learning_rate=0.5)
    trainer.source = _Prompts()
    trainer.train()
    first, second = (line for line in trainer.state.log_history if "policy/ess" in line)
    assert first["policy/ess"] == first["policy/ess_sequence"] == 1.0
    trainer = _trainer(tiny_llada(seed=0), algorithm, TEXTS, tmp_path, learning_rate=0.5)
    trainer.source = _Prompts()
    trainer.train()  # one update, with the weights of the second as they were before it
    batches = trainer._window.batches[1]  # type: ignore[union-attr]
    tokens, sequences, variances = [], [], []
    for batch in batches:
        logp = score_all(trainer.diffusion, batch, 100).logp.double()
        change = (logp - batch.behaviour_logp) * batch.views.scored
        tokens += change[batch.views.scored].exp().tolist()
        sequences += (batch.views.weight * change).sum(1).view(2, 4).mean(1).exp().tolist()
        variances += ((batch.views.weight * logp).sum(1).view(2, 4).var(1) / 4).tolist()
    share = lambda w: sum(w) ** 2 / (len(w) * sum(x * x for x in w))  # noqa: E731
    assert second["policy/ess"] == pytest.approx(share(tokens), rel=1e-5)
    assert second["policy/ess_sequence"] == pytest.approx(share(sequences), rel=1e-5)
    assert second["likelihood/estimate_variance"] == pytest.approx(sum(variances) / 4, rel=1e-5)
    assert 0 < second["policy/ess_sequence"] < second["policy/ess"] < 1


def test_a_window_cannot_be_entered_in_its_middle(tiny: DiffusionModel, tmp_path: Path) -> None:
    trainer = _trainer(tiny, DiffuGRPO(updates_per_rollout=3, kl_coefficient=0), TEXTS, tmp_path)
    trainer.state.global_step = 4
    with pytest.raises(CheckpointError, match="update 4 is inside a window of 3 updates"):
        trainer.get_batch_samples(iter(()), 2, torch.device("cpu"))


def test_a_loss_that_is_not_finite_ends_the_run(tiny: DiffusionModel, tmp_path: Path) -> None:
    trainer = _trainer(tiny, SFT(), TEXTS, tmp_path, max_steps=3)
    with torch.no_grad():
        tiny.network.get_input_embeddings().weight.fill_(float("inf"))
    with pytest.raises(DivergenceError, match="update 1: the loss is not finite"):
        trainer.train()


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_update_of_an_adapter(tmp_path: Path) -> None:
    """Through the trainer, in groups, on a frozen base. Slow: two trainings."""
    plain = _after_updates(tmp_path / "plain")
    checkpointed = _after_updates(tmp_path / "checkpointed", gradient_checkpointing=True)
    moved = torch.cat([plain[name].flatten() for name in plain])
    difference = torch.cat([(plain[name] - checkpointed[name]).flatten() for name in plain])
    assert float(difference.norm()) < 1e-6 * float(moved.norm())


def _after_updates(folder: Path, **more: Any) -> dict[str, torch.Tensor]:
    """The adapter that two updates save."""
    base = tiny_llada()
    model = DiffusionModel(add_lora(base.network, {"r": 4}), base.spec, base.tokenizer)
    trainer = _trainer(model, VRPO(num_draws=2), PAIRS, folder, max_steps=2, **more)
    trainer.train()
    trainer.save_model(str(folder / "final"))
    return load_file(folder / "final" / "adapter_model.safetensors")
