"""The evaluation that a recipe asks for, run by the trainer with the weights of the moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.recipe.schema import EvalSection, Recipe
from dllm_rl.recipe.source import settings_of
from dllm_rl.rollouts.engine import LocalEngine

if TYPE_CHECKING:
    from dllm_rl.evaluation.metrics import EvalResult
    from dllm_rl.evaluation.protocol import EvalProtocol


def evaluator(
    recipe: Recipe, base: Path, model: DiffusionModel, accelerator: Accelerator, update: Callable[[], int]
) -> Callable[[], dict[str, float]] | None:
    """A function that runs every task, or None without tasks.

    It gives `eval/TASK/accuracy`, its `std_error`, the number of examples `n` and the mean `forwards` of one. Every
    answer is kept in OUTPUT/eval/update-N/TASK.jsonl, as `dllm-rl eval --out` keeps it, for `dllm-rl compare`.

    Args:
        update: tells after which update the weights are measured.
    """
    section = recipe.eval
    if section is None:
        return None
    from dllm_rl.evaluation.run import run_task
    from dllm_rl.evaluation.task import load_task

    paths = {**section.paths, **({section.tasks[0]: section.path} if section.path else {})}
    tasks = [load_task(name, base, path=paths.get(name), prompt=section.prompt) for name in section.tasks]
    engine = LocalEngine(model, settings_of(section), section.batch_size)
    protocols: dict[str, EvalProtocol] = {}

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
            if accelerator.is_main_process:
                if task.name not in protocols:
                    protocols[task.name] = _protocol(section, task, recipe)
                    tqdm.write(protocols[task.name].line())
                _keep(result, protocols[task.name], Path(recipe.output), update())
            metrics[f"eval/{task.name}/accuracy"] = result.accuracy
            metrics[f"eval/{task.name}/std_error"] = result.std_error
            metrics[f"eval/{task.name}/n"] = result.n
            metrics[f"eval/{task.name}/forwards"] = result.nfe
        return metrics

    return evaluate


def _protocol(section: EvalSection, task: Any, recipe: Recipe) -> EvalProtocol:
    from dllm_rl.evaluation.protocol import protocol_of
    from dllm_rl.evaluation.task import questions_of

    return protocol_of(
        questions_of(task, section.limit),
        samples=1,
        model=recipe.output,
        revision="as it is trained",
        dtype=recipe.model.dtype,
        settings=settings_of(section),
        seed=0,
    )


def _keep(result: EvalResult, protocol: EvalProtocol, output: Path, update: int) -> None:
    from dllm_rl.evaluation.store import write_evaluation

    named = replace(result, protocol=replace(protocol, revision=f"update {update}"))
    write_evaluation(output / f"eval/update-{update:06d}/{protocol.task}.jsonl", named)
