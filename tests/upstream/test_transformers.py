"""What the trainer assumes of transformers' loop; when an upgrade changes it, this says so before a run goes wrong."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments


def _parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_hooks_that_we_override_have_the_signatures_we_override() -> None:
    assert _parameters(Trainer.get_batch_samples) == ["self", "epoch_iterator", "num_batches", "device"]
    assert _parameters(Trainer.training_step) == ["self", "model", "inputs", "num_items_in_batch"]
    assert _parameters(Trainer.log) == ["self", "logs", "start_time"]
    assert _parameters(Trainer.evaluate)[:4] == ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"]
    assert _parameters(Trainer.save_model)[:2] == ["self", "output_dir"]
    assert _parameters(Trainer._save) == ["self", "output_dir", "state_dict"]
    assert _parameters(Trainer._get_grad_norm) == ["self", "model", "grad_norm"]
    assert _parameters(Trainer._load_from_checkpoint) == ["self", "resume_from_checkpoint", "model"]
    assert hasattr(Trainer, "loss_is_scaled_for_ga")


def test_batches_are_asked_for_once_per_update_and_saved_after_the_log(tmp_path: Any) -> None:
    """The order of events that exact resume and the metrics file rest on: update, log, evaluation, checkpoint."""
    events: list[str] = []
    weights: list[float] = []

    class Probe(Trainer):
        loss_is_scaled_for_ga = True

        def get_train_dataloader(self) -> Any:
            return range(6)

        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
            events.append(f"batches {self.state.global_step} {num_batches}")
            return [{"x": torch.ones(1)}] * num_batches, torch.tensor(2.0)

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            events.append(f"step {float(num_items_in_batch)} sync {self.accelerator.sync_gradients}")
            loss = model(inputs["x"]).sum()
            self.accelerator.backward(loss)
            return loss.detach()

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            events.append(f"norm, weight {'old' if float(model.weight.detach()) == weights[-1] else 'new'}")
            norm = super()._get_grad_norm(model, grad_norm=grad_norm)
            return norm

        def log(self, logs: Any, start_time: Any = None) -> None:
            if "loss" in logs:
                weights.append(float(self.model.weight.detach()))
                events.append(f"log {self.state.global_step}")
            super().log(logs, start_time)

        def save_model(self, output_dir: Any = None, _internal_call: bool = False) -> None:
            events.append(f"save {self.state.global_step}")
            super().save_model(output_dir, _internal_call)

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        gradient_accumulation_steps=2,
        logging_steps=1,
        save_steps=3,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    network = torch.nn.Linear(1, 1)
    weights.append(float(network.weight.detach()))
    Probe(model=network, args=arguments).train()
    assert len(set(weights)) == 4  # every update changed it
    one_update = lambda u: [  # noqa: E731
        f"batches {u} 2",
        "step 2.0 sync False",
        "step 2.0 sync True",
        "norm, weight old",
        f"log {u + 1}",
    ]
    assert events == [*one_update(0), *one_update(1), *one_update(2), "save 3"]


def test_a_callback_can_end_training_with_a_checkpoint_and_is_told_when_all_its_files_are_there(tmp_path: Any) -> None:
    """What stopping on a signal, the manifest and the dropping of old checkpoints rest on."""
    found: dict[int, set[str]] = {}

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_save = True
            control.should_training_stop = state.global_step == 3

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            found[state.global_step] = {file.name for file in (tmp_path / f"checkpoint-{state.global_step}").iterdir()}

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=5, save_strategy="no", use_cpu=True, disable_tqdm=True, report_to="none"
    )
    rows = [{"input_ids": torch.ones(1), "labels": torch.ones(1)}] * 8

    class Squares(torch.nn.Linear):
        def forward(self, input_ids: Any, labels: Any) -> Any:
            return {"loss": (super().forward(input_ids) - labels).square().mean()}

    trainer = Trainer(model=Squares(1, 1), args=arguments, train_dataset=rows, callbacks=[Stop()])  # type: ignore[arg-type]
    trainer.train()
    assert trainer.state.global_step == 3 and sorted(found) == [1, 2, 3]
    for update, names in found.items():
        folder = tmp_path / f"checkpoint-{update}"
        assert names == {file.name for file in folder.iterdir()}, "files come after on_save, or old checkpoints went"
        assert {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= names
