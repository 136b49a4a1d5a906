"""The trainer: transformers' loop, with an update that rolls out, scores views and back-propagates group by group."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from dllm_rl.algorithms.base import Algorithm, Batch, Material, Scores
from dllm_rl.errors import CheckpointError, RecipeError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.modes import evaluating
from dllm_rl.objectives.reduce import Report
from dllm_rl.rng import fold
from dllm_rl.training.backward import backward, groups_by_length, score_all, score_with_entropy
from dllm_rl.training.checkpoint import load_weights
from dllm_rl.training.divergence import DivergenceGuard, Limits
from dllm_rl.training.in_step import in_step, weights_are_spread
from dllm_rl.training.order import Layout
from dllm_rl.training.parts import LeaveIdle, freeze, idle_parameters, split_head, zero_share
from dllm_rl.training.source import Sample, Source

Evaluator = Callable[[], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Window:
    """One rollout (or draw of data) and the micro-batches of the updates made from it: batches[iteration][slot]."""

    index: int
    batches: list[list[Batch]]


class DiffusionTrainer(Trainer):
    """transformers.Trainer whose unit of work is a micro-batch of views.

    `get_batch_samples` runs once per update and makes the micro-batches and their exact count; `training_step`
    back-propagates one micro-batch; `evaluate` runs tasks. Three private hooks are overridden: `_save` and
    `_load_from_checkpoint`, since the public ones around them cannot make saving whole and loading strict, and
    `_get_grad_norm`, since no public one knows the norm before the optimiser steps;
    tests/upstream pins what all of them are assumed to be. Which rows an update sees depends on the
    seed and the update, not on a data loader, so a resumed run needs no data to be skipped.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: DiffusionModel,
        algorithm: Algorithm,
        source: Source,
        args: TrainingArguments,
        views_per_forward: int,
        head_learning_rate: float | None = None,
        limits: Limits | None = None,
        evaluator: Evaluator | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        freeze(model.network, algorithm)
        super().__init__(model=model.network, args=args, processing_class=model.tokenizer, callbacks=callbacks)
        self.diffusion = model
        self.algorithm = algorithm
        self.source = source
        self.views_per_forward = views_per_forward
        self.head_learning_rate = head_learning_rate
        self.evaluator = evaluator
        self.samples: list[Sample] = []
        self.divergence = DivergenceGuard(
            Path(str(args.output_dir)) / "diverged",
            limits or Limits(),
            args.process_index,
            getattr(model.tokenizer, "decode", None),
        )
        self._window: Window | None = None
        self._reports: dict[str, Report] = {}
        self.add_callback(LeaveIdle(model.network, algorithm))
        self._idle()  # what cannot be is refused before anything is sampled

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser of the arguments, with parameter groups of its own for a policy head."""
        made = self.optimizer is not None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if not made:
            split_head(optimizer, self.diffusion.network, self.head_learning_rate)
        return optimizer

    def get_train_dataloader(self) -> Sized:  # type: ignore[override]
        """A stand-in with the right length: rows are chosen in `get_batch_samples`."""
        return range(self.args.max_steps * self.args.gradient_accumulation_steps)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Batch]], Tensor]:
        """The micro-batches of one update, and the denominator of its loss over all processes."""
        window, iteration = divmod(self.state.global_step, self.algorithm.num_iterations)
        if self._window is None or self._window.index != window:
            if iteration:
                raise CheckpointError(
                    f"update {self.state.global_step} is inside a window of {self.algorithm.num_iterations} updates "
                    "made from one rollout, which is gone; resume from a checkpoint at a multiple of it"
                )
            self._window = self._open(window, num_batches)
        batches = self._window.batches[iteration]
        count = torch.tensor(sum(map(self.algorithm.count, batches)), dtype=torch.float64, device=device)
        return [{"batch": batch} for batch in batches], self.accelerator.reduce(count, reduction="sum")

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Batch], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Back-propagate one micro-batch; the gradient is that of the update's mean loss."""
        assert num_items_in_batch is not None
        batch = inputs["batch"]
        model.train()
        scores: list[Scores] = []
        # Gradients are averaged over processes; the exact count is already global.
        # Where no process has anything to learn it is 0, and so is every sum: whatever divides them gives 0.
        scale = self.accelerator.num_processes / (float(num_items_in_batch) or 1.0)
        losses = backward(
            self.algorithm,
            batch,
            self.diffusion.with_network(model),
            self.diffusion,
            groups=groups_by_length(batch, self.views_per_forward, self._most_groups(batch)),
            scale=scale,
            group_context=self._group_context(model, self.accelerator.sync_gradients),
            back_propagate=self._back_propagate,
            also=zero_share(self._idle()),
            see=scores.append,
        )
        for loss in losses:
            self._report(loss.metrics)
        total = scale * torch.stack([loss.total for loss in losses]).sum()
        self.divergence.look(batch, scores[0], total)
        return torch.as_tensor(total, dtype=torch.float32)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        """Where all processes know it, and nothing has been stepped yet (DeepSpeed has); so here what is wrong ends it.

        Raises:
            DivergenceError: on all processes.
        """
        norm: Tensor | float | None = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        known = norm if self.accelerator.mixed_precision != "fp16" else None  # a loss scaler passes such updates over
        self.divergence.check(known, self.state.global_step + 1, self._summed, self.samples)
        return norm

    def _summed(self, numbers: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(numbers, reduction="sum")
        return total

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Run the evaluation tasks with the present weights and log what they gave."""
        if self.evaluator is None:
            return {}
        with evaluating(self.diffusion.network), torch.no_grad():
            metrics = self.evaluator()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the reports gathered since the last training log, summed over processes before they are divided."""
        if "loss" in logs:
            logs.update(self._reduced_reports())
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save on the main process, with the weights gathered if they are spread over processes; all wait for it."""
        super().save_model(output_dir, _internal_call)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """One way to write weights, for checkpoints and for the end: published names, whole or not at all."""
        if self.args.should_save:
            assert output_dir is not None
            self.diffusion.save(output_dir, state_dict=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Strict: transformers would leave weights that it cannot match at their initial values."""
        load_weights(self.diffusion, resume_from_checkpoint)

    @property
    def layout(self) -> Layout:
        return Layout(
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            num_micro_batches=self.args.gradient_accumulation_steps,
            per_device=self.args.per_device_train_batch_size,
        )

    def _open(self, window: int, num_batches: int) -> Window:
        with evaluating(self.diffusion.network), torch.no_grad():
            with self._in_step(self.diffusion):
                harvest = self.source.harvest(window, self.layout, self.state.global_step)
            batches = [
                [
                    self._batch(material, iteration, micro_batch, num_batches)
                    for micro_batch, material in enumerate(harvest.material)
                ]
                for iteration in range(self.algorithm.num_iterations)
            ]
        self._report(harvest.metrics)
        self.samples = harvest.samples
        return Window(window, batches)

    def _batch(self, material: Material, iteration: int, micro_batch: int, num_micro_batches: int) -> Batch:
        """Draw the views and score what must be known before the first update."""
        index = self.algorithm.iteration_index(iteration, micro_batch, num_micro_batches)
        keys = fold(material.group_keys if self.algorithm.shares_draws else material.keys, "views", index)
        batch = self.algorithm.prepare(replace(material, iteration=index), keys, self.diffusion.spec.mask_id)
        with self._in_step(self.diffusion):
            batch = self._as_behaviour(material, batch, iteration)
        if self.algorithm.needs_reference:
            with self.diffusion.reference() as reference, self._in_step(reference):
                batch = replace(batch, reference_logp=score_all(reference, batch, self.views_per_forward).logp)
        return batch

    def _as_behaviour(self, material: Material, batch: Batch, iteration: int) -> Batch:
        """What the weights that wrote the rollout say: what is not to be learned, and scores for later iterations."""
        unknown = self.algorithm.needs_behaviour and batch.behaviour_logp is None and iteration > 0
        if self.algorithm.needs_entropy(material):
            scores = score_with_entropy(self.diffusion, batch, self.views_per_forward)
            batch = self.algorithm.filtered(material, batch, scores.entropy)
            logp = scores.logp.masked_fill(~batch.views.scored, 0.0)
            return replace(batch, behaviour_logp=logp) if unknown else batch
        if unknown:
            batch = replace(batch, behaviour_logp=score_all(self.diffusion, batch, self.views_per_forward).logp)
        return batch

    def _in_step(self, model: DiffusionModel) -> AbstractContextManager[None]:
        return in_step(model, weights_are_spread(self.accelerator))

    def _idle(self) -> list[nn.Parameter]:
        """What this update leaves as it is.

        Raises:
            RecipeError: under DeepSpeed, whose optimiser steps over everything it was given.
        """
        idle = idle_parameters(self.diffusion.network, self.algorithm.trains(self.state.global_step))
        if idle and self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise RecipeError(
                "this algorithm switches between the network and its head from update to update, which DeepSpeed's "
                "optimiser cannot do; launch with recipes/accelerate/ddp.yaml"
            )
        return idle

    def _most_groups(self, batch: Batch) -> int:
        """Every process makes as many forwards and backwards as the one with the most views."""
        groups = torch.tensor(math.ceil(len(batch.views) / self.views_per_forward), device=self.accelerator.device)
        return int(self.accelerator.gather(groups[None]).max())

    def _group_context(self, model: nn.Module, last_micro_batch: bool) -> Callable[[bool], Any]:
        """Gradients are exchanged once per update: in the last group of the last micro-batch."""

        @contextmanager
        def context(last_group: bool) -> Iterator[None]:
            exchange = last_micro_batch and last_group
            self.accelerator.gradient_state._set_sync_gradients(exchange)
            deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
            with nullcontext() if exchange or deepspeed else self.accelerator.no_sync(model):
                yield

        return context

    def _back_propagate(self, objective: Tensor) -> None:
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.accelerator.backward(objective, scale_wrt_gas=False)
        else:
            self.accelerator.backward(objective)

    def _report(self, metrics: Any) -> None:
        for name, mean in metrics.items():
            self._reports[name] = self._reports[name] + mean if name in self._reports else mean

    def _reduced_reports(self) -> dict[str, float]:
        names = sorted(self._reports)
        if not names:
            return {}
        device = self.accelerator.device
        reports = [self._reports.pop(name) for name in names]
        sizes = [len(report.sums) for report in reports]
        parts = torch.cat([torch.stack(report.sums).double().to(device) for report in reports])
        sums = self.accelerator.reduce(parts, reduction="sum").cpu().split(sizes)
        totals = {name: type(report)(*part) for name, report, part in zip(names, reports, sums, strict=True)}
        return {name: float(total.value) for name, total in totals.items() if total.sums[-1]}
