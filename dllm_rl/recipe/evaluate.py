"""The evaluation that a recipe asks for, run by the trainer with the weights of the moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.recipe.schema import Recipe
from dllm_rl.recipe.source import settings_of
from dllm_rl.rollouts.engine import LocalEngine


def evaluator(
    recipe: Recipe, base: Path, model: DiffusionModel, accelerator: Accelerator
) -> Callable[[], dict[str, float]] | None:
    """A function that runs every task, or None without tasks.

    It gives `eval/TASK/accuracy`, its `std_error`, the number of examples `n` and the mean `forwards` of one.
    """
    section = recipe.eval
    if section is None:
        return None
    from accelerate.utils import gather_object

    from dllm_rl.evaluation.run import run_task
    from dllm_rl.evaluation.task import load_task

    paths = {**section.paths, **({section.tasks[0]: section.path} if section.path else {})}
    tasks = [load_task(name, base, path=paths.get(name)) for name in section.tasks]
    engine = LocalEngine(model, settings_of(section), section.batch_size)

    def evaluate() -> dict[str, float]:
        metrics: dict[str, Any] = {}
        for task in tasks:
            result = run_task(
                engine,
                model,
                task,
                limit=section.limit,
                batch_size=section.batch_size,
                rank=accelerator.process_index,
                world=accelerator.num_processes,
                gather=gather_object,
            )
            metrics[f"eval/{task.name}/accuracy"] = result.accuracy
            metrics[f"eval/{task.name}/std_error"] = result.std_error
            metrics[f"eval/{task.name}/n"] = result.n
            metrics[f"eval/{task.name}/forwards"] = result.nfe
        return metrics

    return evaluate
