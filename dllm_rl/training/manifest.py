"""What a finished checkpoint holds: size and hash of every file, written last, so that half of one is never taken."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def write_manifest(folder: Path, update: int) -> None:
    """Make a checkpoint whole: all its files are on the disk before the manifest that says so is.

    Args:
        folder: the checkpoint; no process writes to it any more.
        update: after which it was made.

    Raises:
        OSError: the disk refuses; the folder then has no manifest, or the one it had.
    """
    files = {str(file.relative_to(folder)): _kept(file) for file in _files(folder)}
    for inner in [*(part for part in sorted(folder.rglob("*")) if part.is_dir()), folder, folder.parent]:
        sync(inner)
    write_whole(folder / MANIFEST, json.dumps({"update": update, "files": files}, indent=1) + "\n")


def problem_of(folder: Path) -> str | None:
    """Why a checkpoint cannot be gone on from, in a few words; None if it is whole: every file is read and hashed."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(kept["size"]), str(kept["sha256"])) for name, kept in manifest["files"].items()}
        update = int(manifest["update"])
    except FileNotFoundError:
        return f"it was never finished (no {MANIFEST})" if folder.is_dir() else "there is no such folder"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    if folder.name != f"checkpoint-{update}":
        return f"{MANIFEST} is of checkpoint-{update}"
    try:
        for name, (size, sha256) in sorted(files.items()):
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes of {size}"
            if _hash(folder / name) != sha256:
                return f"{name} is not what was written (its sha256 differs)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None


def is_finished(folder: Path) -> bool:
    """Whether its last file was written, whatever has become of the others."""
    return (folder / MANIFEST).exists()


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half written: it has its old contents or the new ones."""
    scratch = _scratch(path)
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that keeps no order of its own for folders
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until a folder and all that is in it are on the disk."""
    for part in [*sorted(folder.rglob("*")), folder]:
        sync(part)


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.writing")


def _files(folder: Path) -> list[Path]:
    own = (folder / MANIFEST, _scratch(folder / MANIFEST))
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file not in own]


def _kept(file: Path) -> dict[str, Any]:
    sync(file)
    return {"size": file.stat().st_size, "sha256": _hash(file)}


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
