"""Finding the files a recipe names: beside the recipe, in the working directory, else those shipped here."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from dllm_rl.errors import MissingSettingError, RecipeError


def shipped_root() -> Path:
    """Folder that holds recipes/, rewards/ and eval/: inside an installed package, or the root of a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "_shipped"
    return inside if inside.is_dir() else package.parent


def find(name: str, base: Path | None = None) -> Path | None:
    """The existing file or folder that `name` means, absolute; None if there is none.

    Args:
        name: a path, absolute or relative to `base`, to the working directory or to the shipped files, in this order.
        base: folder of the recipe that names it.
    """
    path = Path(name).expanduser()
    return next(((folder / path).resolve() for folder in _folders(base) if (folder / path).exists()), None)


def locate(name: str, base: Path | None = None) -> Path:
    """The existing file that `name` means; see `find`.

    Raises:
        RecipeError: there is no such file in any of these places.
    """
    found = find(name, base)
    if found is not None and found.is_file():
        return found
    path = Path(name).expanduser()
    tried = path.parent if path.is_absolute() else ", ".join(map(str, _folders(base)))
    raise RecipeError(f"no file {name} (looked in {tried}); give a path that exists")


def _folders(base: Path | None) -> list[Path]:
    return list(dict.fromkeys(folder.resolve() for folder in (base or Path.cwd(), Path.cwd(), shipped_root())))


def import_file(path: Path) -> ModuleType:
    """The module in a file, run once per process however often it is asked for.

    Raises:
        RecipeError: the file cannot be imported.
        MissingSettingError: it asks for a setting that is not there.
    """
    name = f"_dllm_rl_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path}: not a Python file; expected one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except MissingSettingError as error:
        del sys.modules[name]
        raise MissingSettingError(f"{path}: {error}") from error
    except Exception as error:
        del sys.modules[name]
        raise RecipeError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    return module
