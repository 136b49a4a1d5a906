"""What a recipe's `train` section becomes on the machine and under the launcher at hand."""

from __future__ import annotations

import atexit
import gc
import math
import os
import warnings
from functools import cache
from typing import Any

import torch
import transformers
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

from dllm_rl.errors import RecipeError
from dllm_rl.recipe.schema import Recipe


def under_deepspeed() -> bool:
    """Whether accelerate was launched with DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"


def under_fsdp() -> bool:
    """Whether accelerate was launched with FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"


def world_size() -> int:
    """Processes that were launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _device_arguments() -> dict[str, Any]:
    """Without an accelerator, processes meet over gloo; DeepSpeed needs `use_cpu` off to be used at all."""
    if torch.cuda.is_available():
        return {}
    if under_deepspeed():
        return {"use_cpu": False, "ddp_backend": "gloo"}
    return {"use_cpu": True, **({"ddp_backend": "gloo"} if world_size() > 1 else {})}


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """TrainingArguments of a recipe, their number of updates still to be set; the processes have met when it returns.

    Raises:
        RecipeError: the number of updates is missing, or there are no such arguments.
    """
    given = dict(recipe.train.arguments)
    if under_deepspeed() and not torch.cuda.is_available():
        _skip_compiled_communication()
    given.setdefault("logging_steps", 1)
    given.setdefault("log_level", "error")
    given.setdefault("log_level_replica", "error")
    given.setdefault("ddp_find_unused_parameters", False)  # every forward uses every weight that is trained
    if given.get("max_steps", -1) <= 0 and "num_train_epochs" not in given:
        raise RecipeError("train: the run has no length; give max_steps (updates) or num_train_epochs")
    arguments = {
        **_device_arguments(),
        **given,
        "output_dir": recipe.output,
        "disable_tqdm": True,
        "eval_on_start": recipe.eval is not None,
        "ignore_data_skip": True,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
    }
    try:
        return TrainingArguments(**arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"train: {error}") from error


def set_length(arguments: TrainingArguments, recipe: Recipe, num_rows: int) -> None:
    """Set the number of updates, which epochs give only when the rows are known.

    Raises:
        RecipeError: it does not fit the updates made from one rollout.
    """
    if arguments.max_steps <= 0:
        accumulation = arguments.gradient_accumulation_steps
        rows_per_update = arguments.per_device_train_batch_size * accumulation * world_size()
        windows = math.ceil(arguments.num_train_epochs * num_rows / rows_per_update)
        arguments.max_steps = windows * recipe.algorithm.num_iterations
    _check_windows(recipe, arguments)


def _check_windows(recipe: Recipe, arguments: TrainingArguments) -> None:
    mu = recipe.algorithm.num_iterations
    if arguments.max_steps % mu:
        raise RecipeError(
            f"train.max_steps is {arguments.max_steps}, not a multiple of the {mu} updates made from one rollout"
        )
    if arguments.save_strategy == "steps" and arguments.save_steps % mu:
        raise RecipeError(
            f"train.save_steps is {arguments.save_steps}, not a multiple of the {mu} updates made from one rollout; a "
            "run resumes between rollouts only"
        )


def check_world(trainer: Trainer) -> None:
    """Refuse to train otherwise than was asked for: apart, or with whole weights where they were to be spread.

    Raises:
        RecipeError: the launcher started several processes and accelerate sees one, or does not synchronise them; or
            FSDP was asked for and accelerate does not shard, or not in the one way that is supported.
    """
    state = trainer.accelerator.state
    wanted = world_size()
    if under_fsdp():
        _check_fsdp(trainer)
    if wanted > 1 and (state.num_processes != wanted or state.distributed_type.value == "NO"):
        raise RecipeError(
            f"{wanted} processes were launched, but accelerate runs {state.num_processes} as {state.distributed_type}; "
            "each would train a model of its own. Launch with --config_file recipes/accelerate/ddp_cpu.yaml (no "
            "GPU) or another file of that folder"
        )


def _check_fsdp(trainer: Trainer) -> None:
    state = trainer.accelerator.state
    if state.distributed_type.value != "FSDP":
        raise RecipeError(
            f"launched with FSDP, but accelerate runs {state.num_processes} processes on {state.device.type} as "
            f"{state.distributed_type.value}, which spreads nothing: accelerate does not shard on CPUs, nor in one "
            "process. Launch with recipes/accelerate/ddp_cpu.yaml, or with zero3.yaml to spread weights over CPUs"
        )
    if not trainer.accelerator.is_fsdp2:
        raise RecipeError("launched with FSDP 1, which is not supported; set fsdp_version: 2 in its fsdp_config")
    kept_as = state.fsdp_plugin.state_dict_type.name
    if kept_as != "FULL_STATE_DICT":
        raise RecipeError(
            f"launched with fsdp_state_dict_type {kept_as}, of which no model would be saved; set FULL_STATE_DICT in "
            "its fsdp_config"
        )


def quieten() -> None:
    """Leave the terminal to the run: no bars for loading weights, no hints about settings that are ours."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@cache
def leave_process_group_at_exit() -> None:
    """Join the threads that processes met over before the interpreter exits: left running they may abort it."""
    atexit.register(leave_process_group)


def leave_process_group() -> None:
    """End the threads that processes met over, from Python, which lets other threads run while it waits for them.

    A wrapper of the model for several processes holds the group from C++. Were it the last to, it would wait with the
    interpreter locked, for threads that may need it to finish. So wrappers go first, or, where something keeps them
    (a traceback does), what they hold. Nothing is sent: other processes may be gone already.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    gc.collect()  # wrapped models sit in reference cycles
    for wrapper in [each for each in gc.get_objects() if issubclass(type(each), DistributedDataParallel)]:
        for held in ("logger", "reducer"):
            wrapper.__dict__.pop(held, None)
    distributed.destroy_process_group()


def _skip_compiled_communication() -> None:
    """DeepSpeed would compile shared-memory collectives for the CPU; gloo does without a compiler."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
