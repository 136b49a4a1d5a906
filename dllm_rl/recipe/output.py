"""A run's folder: whose it is, and whether it can go on from there."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dllm_rl.errors import RecipeError
from dllm_rl.recipe.schema import Recipe
from dllm_rl.training.manifest import sync_tree, write_whole

log = logging.getLogger(__name__)

_RECIPE = "recipe.json"
_LOCK = ".lock"
_MAY_CHANGE = (
    "output",
    "eval",
    "train.max_steps",
    "train.num_train_epochs",
    "train.save_steps",
    "train.save_total_limit",
    "train.logging_steps",
    "train.report_to",
    "train.run_name",
    "train.resume_from_checkpoint",
    "train.views_per_forward",
    "train.per_device_train_batch_size",  # their product with the number of processes is compared with a checkpoint's
    "train.gradient_accumulation_steps",
    "rollout.batch_size",
    "reward.time_limit",
    "reward.workers",
    "train.stuck_after",
    "train.stop_at_",
)
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Names of what a run writes."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def curve(self) -> Path:
        return self.path / "curve.png"

    @property
    def final(self) -> Path:
        """The trained weights, or the adapter."""
        return self.path / "final"


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """The run's folder, made if it is not there, and no other process's while this one writes to it.

    The lock goes with the process that took it, however that ends. Of several processes only the main one takes it.

    Raises:
        RecipeError: the folder cannot be written to, or another process has it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = (folder.path / _LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"output: {folder.path} cannot be written to ({error.strerror}); choose another output"
        ) from error
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks
                log.warning("%s: cannot be locked (%s); do not run this recipe twice at once", folder.path, error)
            else:
                lock.seek(0)
                raise RecipeError(
                    f"output: process {lock.read().strip() or '?'} is writing to {folder.path}; wait until it ends, or "
                    "choose another output"
                ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def put_in_place(made: Path, folder: Path) -> None:
    """Give a finished folder its name, in place of one that has it: whoever looks sees all of it or nothing."""
    sync_tree(made)
    old = folder.with_name(f".{folder.name}.old.writing")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    made.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def check_owner(recipe: Recipe) -> bool:
    """Whether the output folder holds this recipe's run already (true), or no run at all (false).

    Settings that change what is reported or how long the run goes, not what it computes, may differ.

    Raises:
        RecipeError: it holds another recipe's run.
    """
    file = Path(recipe.output) / _RECIPE
    if Path(recipe.output).exists() and not Path(recipe.output).is_dir():
        raise RecipeError(f"output: {recipe.output} is a file; give a folder")
    if not file.is_file():
        return False
    try:
        there = _flat(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise RecipeError(f"output: {file} is not readable ({error}); choose another output or remove it") from error
    here = _flat(_tree(recipe))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name) and not name.startswith(_MAY_CHANGE):
            raise RecipeError(
                f"output: {recipe.output} holds another run ({name} is {there.get(name)!r} there, {here.get(name)!r} "
                "here); choose another output or remove it"
            )
    return True


def record(recipe: Recipe) -> None:
    """Write the resolved recipe, which can be run again, and beside it what it ran on."""
    folder = Path(recipe.output)
    write_whole(folder / _RECIPE, json.dumps(_tree(recipe), indent=2) + "\n")
    write_whole(folder / "environment.json", json.dumps(_environment(), indent=2) + "\n")


def _tree(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _environment() -> dict[str, Any]:
    versions = {}
    for package in ("dllm-rl", *_PACKAGES):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "versions": versions, "git_commit": _commit()}


def _commit() -> str | None:
    """Commit of the checkout this package runs from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
