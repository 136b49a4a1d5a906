"""Which weights a path means, without loading them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from transformers.utils.hub import cached_file, extract_commit_hash

from dllm_rl.errors import CheckpointError
from dllm_rl.models.load import ADAPTER_CONFIG, base_config, resolve

PIECES = 64
PIECE = 1 << 16
"""A file of weights is told by its size and this many pieces of this many bytes, spread evenly: reading all of an
8B model would take longer than answering."""
_UNSEEN = (".md", ".png", ".pt", ".pth", ".bin.lock")


def revision_of(path: str | Path, revision: str | None = None) -> str:
    """A hub commit, or a digest of a folder's files; an adapter's is followed by + and its base's.

    Args:
        path: as `load_model` takes it.
        revision: commit, tag or branch on the hub.

    Raises:
        CheckpointError: there is no such model.
    """
    source = resolve(path)
    folder = Path(source)
    if not folder.is_dir():
        return _commit(source, revision)
    if (folder / ADAPTER_CONFIG).is_file():
        return f"{_digest(folder)}+{revision_of(base_config(folder)[1])}"
    return _digest(folder)


def _commit(source: str, revision: str | None) -> str:
    try:
        file = cached_file(source, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        message = " ".join(str(error).split())
        raise CheckpointError(f"there is no folder {source} here, and as a hub id it fails: {message}") from error
    commit = extract_commit_hash(file, None)
    return commit[:12] if commit else "unknown"


def _digest(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.name.startswith(".") or file.name.endswith(_UNSEEN):
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as handle:
            if size <= PIECES * PIECE:
                digest.update(handle.read())
                continue
            for piece in range(PIECES):
                handle.seek(piece * (size - PIECE) // (PIECES - 1))
                digest.update(handle.read(PIECE))
    return digest.hexdigest()
