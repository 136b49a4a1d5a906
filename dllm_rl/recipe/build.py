"""From a recipe to a trained model: the one place that puts all the pieces together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback, TrainerCallback, set_seed

from dllm_rl.errors import CheckpointError, RunStoppedError
from dllm_rl.recipe.evaluate import evaluator
from dllm_rl.recipe.fit import check_options
from dllm_rl.recipe.launch import (
    check_world,
    leave_process_group_at_exit,
    quieten,
    set_length,
    training_arguments,
)
from dllm_rl.recipe.load import load_recipe, recipe_file
from dllm_rl.recipe.model import make_model, needs_reference_copy, needs_weights_everywhere
from dllm_rl.recipe.output import RunFolder, check_owner, held, put_in_place, record
from dllm_rl.recipe.schema import Recipe
from dllm_rl.recipe.source import load_data, make_source
from dllm_rl.training.checkpoint import Found, clear_broken, could_not_write, find_whole, planned_updates, update_of
from dllm_rl.training.compat import keep_precision, prepare_frozen, spread_now, spread_weights_only, weight_of_copy
from dllm_rl.training.divergence import Limits
from dllm_rl.training.keeping import KeepWhole
from dllm_rl.training.loading import load_together, loading_whole, spread_from_one
from dllm_rl.training.logging import Curve, EvaluateEvery, MetricsFile, Progress, accuracy_names, read_metrics
from dllm_rl.training.manifest import problem_of
from dllm_rl.training.spread import RecordSpread, Spread, refuse_unfit
from dllm_rl.training.stopping import StopAtWindowEnd, StopRequest, follow_launcher
from dllm_rl.training.trainer import DiffusionTrainer
from dllm_rl.training.watchdog import Watchdog, board_of_processes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left."""

    output: Path
    """Folder of the run: metrics.jsonl, recipe.json, checkpoints, curve.png."""
    final: Path
    """Folder of the trained weights or adapter; give it, or `output`, to `load_model`."""
    metrics: list[dict[str, Any]]
    """Lines of metrics.jsonl."""


def train(recipe_path_or_dict: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunResult:
    """Run a recipe. A run that was interrupted goes on from its last whole checkpoint.

    While it trains, SIGTERM and SIGINT ask it to stop at the end of a rollout's updates, with a checkpoint.

    Args:
        recipe_path_or_dict: a YAML file, a run's recipe.json, or the recipe itself.
        overrides: "key.path=value", applied in order.

    Raises:
        RunStoppedError: a signal asked it to stop, and it did.
        DllmRlError: something in the recipe, its data, its rewards or its output cannot be used as it is.
    """
    recipe = load_recipe(recipe_path_or_dict, overrides)
    check_options(recipe)
    quieten()
    leave_process_group_at_exit()
    follow_launcher()
    base = Path.cwd() if isinstance(recipe_path_or_dict, Mapping) else recipe_file(recipe_path_or_dict).parent
    ours = check_owner(recipe)
    folder = RunFolder(Path(recipe.output))
    with held(folder):
        trainer = _trainer(recipe, base)
        checkpoint = _checkpoint(recipe, ours, trainer.accelerator)
        if checkpoint is not None:
            refuse_unfit(checkpoint, Spread.of(trainer.accelerator, trainer.layout))
            trainer.args.eval_on_start = False
            if trainer.accelerator.is_main_process:
                log.warning("resuming %s from update %d", recipe.output, update_of(checkpoint))
                warn_of_another_schedule(trainer, checkpoint)
        with _told_if_unwritable(folder), _watchdog(recipe, trainer).watching(trainer.diffusion.network):
            if trainer.accelerator.is_main_process:
                record(recipe)
            _run(recipe, trainer, folder, checkpoint)
    result = RunResult(folder.path, folder.final, read_metrics(folder.metrics))
    if trainer.accelerator.is_main_process:
        print(farewell(result, recipe), flush=True)
    return result


def _checkpoint(recipe: Recipe, ours: bool, accelerator: Accelerator) -> Path | None:
    """Where to go on from: what the recipe names, else this run's own last whole checkpoint.

    The main process reads and decides, so that all go on from the same one.

    Raises:
        CheckpointError: the one that the recipe names is not whole.
    """
    decided: list[Path | CheckpointError | None] = [None]
    if accelerator.is_main_process:
        named = recipe.train.arguments.get("resume_from_checkpoint")
        if isinstance(named, str):
            problem = problem_of(Path(named))
            error = CheckpointError(f"train.resume_from_checkpoint: {named} is not a whole checkpoint: {problem}")
            decided = [Path(named) if problem is None else error]
        elif ours:
            decided = [_own_checkpoint(Path(recipe.output))]
    found: Path | CheckpointError | None = broadcast_object_list(decided)[0]
    if isinstance(found, CheckpointError):
        raise found
    return found


def _own_checkpoint(output: Path) -> Path | None:
    """The run's last whole checkpoint; those that it is followed by are named, and make room."""
    found: Found = find_whole(output)
    instead = f"going on from {found.checkpoint.name}" if found.checkpoint else "there is no whole one: starting again"
    for folder, problem in found.broken.items():
        log.warning("%s is not whole: %s; %s", folder, problem, instead)
    clear_broken(output, found)
    return found.checkpoint


def _trainer(recipe: Recipe, base: Path) -> DiffusionTrainer:
    set_seed(recipe.train.arguments.get("seed", 42))  # for what users draw; every draw of ours has a key of its own
    arguments = training_arguments(recipe)
    from_one = spread_from_one(arguments) and not needs_weights_everywhere(recipe)
    with loading_whole(arguments):
        model = load_together(lambda reads: make_model(recipe, base, reads), from_one)
        rows = load_data(recipe, base, model)
        set_length(arguments, recipe, len(rows))
        source = make_source(recipe, base, rows, model, arguments.seed, arguments.device)
    trainer = DiffusionTrainer(
        model=model,
        algorithm=recipe.algorithm,
        source=source,
        args=arguments,
        views_per_forward=recipe.train.views_per_forward,
        head_learning_rate=recipe.train.head_learning_rate,
        limits=Limits(recipe.train.stop_at_grad_norm, recipe.train.stop_at_log_ratio),
    )
    check_world(trainer)
    trainer.add_callback(RecordSpread(Spread.of(trainer.accelerator, trainer.layout)))
    if needs_reference_copy(recipe):
        model.make_reference_copy(
            lambda network: prepare_frozen(network, trainer.accelerator), weight_of_copy(trainer.accelerator, from_one)
        )
    keep_precision(model.network, trainer.accelerator)
    spread_now(model.network, trainer.accelerator)
    spread_weights_only(model.network, trainer.accelerator)
    trainer.evaluator = evaluator(recipe, base, model, trainer.accelerator, lambda: trainer.state.global_step)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _watchdog(recipe: Recipe, trainer: DiffusionTrainer) -> Watchdog:
    processes = trainer.accelerator
    return Watchdog(recipe.stuck_after, processes.process_index, processes.num_processes, board_of_processes())


def warn_of_another_schedule(trainer: DiffusionTrainer, checkpoint: Path) -> None:
    """A run made longer goes on, but is not the run that would have been planned that long from the start."""
    planned, wanted = planned_updates(checkpoint), trainer.args.max_steps
    if planned != wanted and trainer.args.lr_scheduler_type not in ("constant", "constant_with_warmup"):
        log.warning(
            "train.max_steps was %d and is %d: the learning rate follows the new schedule from here on, so the result "
            "differs from that of a run planned this long",
            planned,
            wanted,
        )


def _callbacks(
    recipe: Recipe, folder: RunFolder, trainer: DiffusionTrainer, checkpoint: Path | None, stop: StopAtWindowEnd
) -> list[TrainerCallback]:
    """In the order in which they act: is there to be an evaluation, a stop, and so a checkpoint."""
    limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None  # the callback does it, when it is safe
    callbacks: list[TrainerCallback] = [EvaluateEvery(recipe.eval.every)] if recipe.eval else []
    callbacks += [stop, KeepWhole(trainer.accelerator.wait_for_everyone, limit, (folder.metrics,))]
    if trainer.accelerator.is_main_process:
        callbacks += [
            MetricsFile(folder.metrics, update_of(checkpoint) if checkpoint is not None else 0),
            Progress(lambda: trainer.samples),
            Curve(folder.metrics, folder.curve),
        ]
    return callbacks


def _run(recipe: Recipe, trainer: DiffusionTrainer, folder: RunFolder, checkpoint: Path | None) -> None:
    """Train and save, until the end or until a signal.

    Raises:
        RunStoppedError: the signal came before the last update.
    """
    request = StopRequest()
    stop = StopAtWindowEnd(request, recipe.algorithm.num_iterations, _any_process(trainer.accelerator))
    for callback in _callbacks(recipe, folder, trainer, checkpoint, stop):
        trainer.add_callback(callback)
    with request.heeded():
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
            update = trainer.state.global_step
            if update < trainer.state.max_steps:
                asked = request.signal.name if request.signal else "a signal to another process"
                raise RunStoppedError(
                    f"{folder.path}: stopped by {asked} after update {update} of {trainer.state.max_steps}; "
                    f"checkpoint-{update} is whole. Run the same command again to go on"
                )
            _save_final(trainer, folder)
        finally:
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, Progress):
                    callback.close()


def _save_final(trainer: DiffusionTrainer, folder: RunFolder) -> None:
    made = folder.final.with_name(".final.writing")
    trainer.save_model(str(made))
    if trainer.accelerator.is_main_process:
        put_in_place(made, folder.final)
    trainer.accelerator.wait_for_everyone()


def _any_process(accelerator: Accelerator) -> Callable[[bool], bool]:
    """Whether something is so on one process at least."""

    def any_of(here: bool) -> bool:
        return bool(accelerator.reduce(torch.tensor(float(here), device=accelerator.device), reduction="sum") > 0)

    return any_of


@contextmanager
def _told_if_unwritable(folder: RunFolder) -> Iterator[None]:
    """A full or read-only disk costs what was not yet written, never what was, and one line.

    Raises:
        CheckpointError: nothing more could be written.
    """
    try:
        yield
    except Exception as error:
        if not could_not_write(error, folder.path):
            raise
        left = find_whole(folder.path).checkpoint
        kept = f"the last whole checkpoint is {left}" if left else "no checkpoint was written yet"
        raise CheckpointError(
            f"{folder.path}: could not write: {error.__cause__ or error}; {kept}. Make room, or the folder writable, "
            "and run the same command again to go on"
        ) from error


def farewell(result: RunResult, recipe: Recipe) -> str:
    """What the run achieved, where it is, and how to use it."""
    lines = [f"Done. Everything is in {result.output}: final/, metrics.jsonl, curve.png, recipe.json, checkpoints."]
    for name in accuracy_names(result.metrics):
        values = [line[name] for line in result.metrics if name in line]
        lines.insert(0, f"{name.split('/')[1]} accuracy (held out): {values[0]:.3f} before, {values[-1]:.3f} after")
    decoding = recipe.rollout or recipe.eval
    length = f" --gen-length {decoding.gen_length}" if decoding else ""
    lines.append(
        f"Use it: dllm_rl.load_model({str(result.output)!r}), or dllm-rl generate {result.output} --prompt TEXT{length}"
    )
    return "\n".join(lines)
