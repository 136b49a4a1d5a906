"""From a recipe to a trained model: the one place that puts all the pieces together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, set_seed

from dllm_rl.errors import CheckpointError
from dllm_rl.recipe.evaluate import evaluator
from dllm_rl.recipe.fit import check_options
from dllm_rl.recipe.launch import (
    check_world,
    leave_process_group_at_exit,
    load_whole,
    quieten,
    training_arguments,
)
from dllm_rl.recipe.load import load_recipe, recipe_file
from dllm_rl.recipe.model import make_model, needs_reference_copy
from dllm_rl.recipe.output import RunFolder, check_owner, record
from dllm_rl.recipe.schema import Recipe
from dllm_rl.recipe.source import load_data, make_source
from dllm_rl.training.checkpoint import is_disk_full, last_complete, planned_updates, update_of
from dllm_rl.training.compat import keep_precision, prepare_frozen
from dllm_rl.training.logging import Curve, EvaluateEvery, MetricsFile, Progress, accuracy_names, read_metrics
from dllm_rl.training.spread import RecordSpread, Spread, refuse_unfit
from dllm_rl.training.trainer import DiffusionTrainer

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

    Args:
        recipe_path_or_dict: a YAML file, a run's recipe.json, or the recipe itself.
        overrides: "key.path=value", applied in order.

    Raises:
        DllmRlError: something in the recipe, its data, its rewards or its output cannot be used as it is.
    """
    recipe = load_recipe(recipe_path_or_dict, overrides)
    check_options(recipe)
    quieten()
    leave_process_group_at_exit()
    base = Path.cwd() if isinstance(recipe_path_or_dict, Mapping) else recipe_file(recipe_path_or_dict).parent
    checkpoint = _checkpoint(recipe)
    folder = RunFolder(Path(recipe.output))
    trainer = _trainer(recipe, base, folder, checkpoint)
    if trainer.accelerator.is_main_process:
        record(recipe)
    if checkpoint is not None:
        log.warning("resuming %s from update %d", recipe.output, update_of(checkpoint))
        warn_of_another_schedule(trainer, checkpoint)
    _run(trainer, folder, checkpoint)
    result = RunResult(folder.path, folder.final, read_metrics(folder.metrics))
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        print(farewell(result, recipe), flush=True)
    return result


def _checkpoint(recipe: Recipe) -> Path | None:
    """Where to go on from: what the recipe names, else this run's own last whole checkpoint."""
    ours = check_owner(recipe)
    named = recipe.train.arguments.get("resume_from_checkpoint")
    if isinstance(named, str):
        if update_of(Path(named)) is None:
            raise CheckpointError(f"train.resume_from_checkpoint: {named} is not a whole checkpoint of a run")
        return Path(named)
    return last_complete(Path(recipe.output)) if ours else None


def _trainer(recipe: Recipe, base: Path, folder: RunFolder, checkpoint: Path | None) -> DiffusionTrainer:
    set_seed(recipe.train.arguments.get("seed", 42))  # for what users draw; every draw of ours has a key of its own
    load_whole()
    model = make_model(recipe, base)
    rows = load_data(recipe, base, model)
    arguments = training_arguments(recipe, len(rows), resuming=checkpoint is not None)
    folder.path.mkdir(parents=True, exist_ok=True)
    trainer = DiffusionTrainer(
        model=model,
        algorithm=recipe.algorithm,
        source=make_source(recipe, base, rows, model, arguments.seed, arguments.device),
        args=arguments,
        views_per_forward=recipe.train.views_per_forward,
        head_learning_rate=recipe.train.head_learning_rate,
    )
    check_world(trainer)
    spread = Spread.of(trainer.accelerator, trainer.layout)
    if checkpoint is not None:
        refuse_unfit(checkpoint, spread)
    trainer.add_callback(RecordSpread(spread))
    if needs_reference_copy(recipe):
        model.make_reference_copy(lambda network: prepare_frozen(network, trainer.accelerator))
    keep_precision(model.network, trainer.accelerator)
    trainer.evaluator = evaluator(recipe, base, model, trainer.accelerator, lambda: trainer.state.global_step)
    trainer.remove_callback(PrinterCallback)
    for callback in _callbacks(recipe, folder, trainer, checkpoint):
        trainer.add_callback(callback)
    return trainer


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
    recipe: Recipe, folder: RunFolder, trainer: DiffusionTrainer, checkpoint: Path | None
) -> list[TrainerCallback]:
    if not trainer.accelerator.is_main_process:
        return [EvaluateEvery(recipe.eval.every)] if recipe.eval else []
    resumed = update_of(checkpoint) if checkpoint is not None else None
    callbacks: list[TrainerCallback] = [
        MetricsFile(folder.metrics, resumed or 0),
        Progress(lambda: trainer.samples),
        Curve(folder.metrics, folder.curve),
    ]
    return [EvaluateEvery(recipe.eval.every), *callbacks] if recipe.eval else callbacks


def _run(trainer: DiffusionTrainer, folder: RunFolder, checkpoint: Path | None) -> None:
    """Train and save; a full disk costs what was not yet written, never what was.

    Raises:
        CheckpointError: nothing more could be written.
    """
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        trainer.save_model(str(folder.final))
    except Exception as error:
        if not is_disk_full(error):
            raise
        left = last_complete(folder.path)
        kept = f"the last whole checkpoint is {left}" if left else "no checkpoint was written yet"
        raise CheckpointError(
            f"{folder.path}: could not write: {error.__cause__ or error}; {kept}. Free space and run the same command "
            "again to go on"
        ) from error
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, Progress):
                callback.close()


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
