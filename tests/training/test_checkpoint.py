"""A checkpoint is taken only if every file is what was written; what is not whole is named, and makes room."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dllm_rl.training.checkpoint import (
    Found,
    checkpoints,
    clear_broken,
    could_not_write,
    find_whole,
    planned_updates,
    update_of,
)
from dllm_rl.training.manifest import MANIFEST, is_finished, problem_of, write_manifest, write_whole


def make(output: Path, update: int, *, finished: bool = True) -> Path:
    """A checkpoint with a file of weights, the trainer's state and a folder of shards."""
    folder = output / f"checkpoint-{update}"
    (folder / f"global_step{update}").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / f"global_step{update}" / "rank_1.pt").write_bytes(b"shard" * 9)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": update, "max_steps": 12}))
    if finished:
        write_manifest(folder, update)
    return folder


def flip(file: Path) -> None:
    """One bit of it."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda folder: None, ""),
    "a file more": (lambda folder: (folder / "notes.txt").write_text("mine"), ""),
    "cut short": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 77),
        "model.safetensors has 77 bytes of 200",
    ),
    "grown": (
        lambda folder: (folder / "model.safetensors").write_bytes(bytes(201)),
        "model.safetensors has 201 bytes of 200",
    ),
    "one bit": (
        lambda folder: flip(folder / "model.safetensors"),
        "model.safetensors is not what was written (its sha256 differs)",
    ),
    "one bit of a shard": (
        lambda folder: flip(folder / "global_step4/rank_1.pt"),
        "global_step4/rank_1.pt is not what was written (its sha256 differs)",
    ),
    "one file": (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
    "manifest gone": (lambda folder: (folder / MANIFEST).unlink(), "it was never finished (no manifest.json)"),
    "half a manifest": (
        lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:40]),
        "manifest.json cannot be read (JSONDecodeError)",
    ),
    "a manifest of nonsense": (
        lambda folder: (folder / MANIFEST).write_text('{"update": 4, "files": [1, 2]}'),
        "manifest.json cannot be read (AttributeError)",
    ),
    "another's manifest": (
        lambda folder: (folder / MANIFEST).write_text('{"update": 2, "files": {}}'),
        "manifest.json is of checkpoint-2",
    ),
    "everything": (lambda folder: shutil.rmtree(folder), "there is no such folder"),
}


@pytest.mark.parametrize(("damage", "problem"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found_and_named(tmp_path: Path, damage: Callable[[Path], object], problem: str) -> None:
    folder = make(tmp_path, 4)
    damage(folder)
    assert (problem_of(folder) or "") == problem


def test_the_newest_whole_checkpoint_is_found_and_the_newer_ones_are_named(tmp_path: Path) -> None:
    assert find_whole(tmp_path) == Found(None)
    for update in (2, 9, 10, 12):
        make(tmp_path, update)
    unfinished = make(tmp_path, 14, finished=False)
    flip(tmp_path / "checkpoint-12" / "model.safetensors")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-16").touch()
    found = find_whole(tmp_path)
    assert found.checkpoint == tmp_path / "checkpoint-10" and planned_updates(found.checkpoint) == 12
    assert [update_of(folder) for folder in found.broken] == [14, 12]
    assert found.broken[unfinished] == "it was never finished (no manifest.json)"


def test_what_was_never_finished_goes_and_what_was_whole_once_is_set_aside(tmp_path: Path) -> None:
    for update in (2, 4):
        make(tmp_path, update)
    make(tmp_path, 6, finished=False)
    (tmp_path / ".checkpoint-6.writing").mkdir()
    (tmp_path / ".metrics.jsonl.writing").write_text("half")
    for _ in range(2):  # the second time another one was set aside before
        flip(tmp_path / "checkpoint-4" / "model.safetensors")
        clear_broken(tmp_path, find_whole(tmp_path))
        assert sorted(part.name for part in tmp_path.iterdir()) == ["broken-checkpoint-4", "checkpoint-2"]
        assert is_finished(tmp_path / "broken-checkpoint-4")
        make(tmp_path, 4)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-2"]


def test_a_file_that_cannot_be_replaced_keeps_what_it_had(tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    write_whole(file, "the old one")
    folder = make(tmp_path, 2, finished=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError) as full:
            write_whole(file, "the new one" * 50)
        with pytest.raises(OSError):
            write_manifest(folder, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_text() == "the old one" and could_not_write(full.value, tmp_path)
    assert problem_of(folder) == "it was never finished (no manifest.json)"
    write_manifest(folder, 2)
    assert problem_of(folder) is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "x"), True),
        (OSError(30, "Read-only file system", "x"), True),
        (OSError(5, "Input/output error"), True),
        (RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0, failed writing file"), True),
        (PermissionError(13, "Permission denied", "run/metrics.jsonl"), True),
        (PermissionError(13, "Permission denied", "elsewhere/data.jsonl"), False),
        (OSError(2, "No such file or directory", "run/reward.py"), False),
        (ValueError("nothing to do with disks"), False),
    ],
    ids=str,
)
def test_which_errors_say_that_nothing_can_be_written(error: Exception, told: bool) -> None:
    assert could_not_write(error, Path("run")) == told
    outer = RuntimeError("the trainer failed")
    outer.__cause__ = error
    assert could_not_write(outer, Path("run")) == told
