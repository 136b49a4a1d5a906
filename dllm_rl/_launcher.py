"""Let the interpreter run a recipe: ``python recipe.yaml``, and so ``accelerate launch recipe.yaml``.

Before Python reads a script as source it asks ``sys.path_hooks`` for an importer of that path, which is how
``python app.zip`` works. This hook accepts YAML files. It runs at start-up: standard library only, no I/O but `isfile`.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from os.path import isfile
from types import CodeType, ModuleType

_SUFFIXES = (".yaml", ".yml")
_PROGRAM = "import sys; from dllm_rl.cli import run_as_script; sys.exit(run_as_script(sys.argv))"


class _RecipeFinder:
    """A path hook and the finder and loader of the one module found behind it, ``__main__``."""

    def __init__(self, path: str) -> None:
        if not (path.endswith(_SUFFIXES) and isfile(path)):
            raise ImportError(path)  # the protocol's way to say "not mine"
        self.path = path

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec("__main__", self, origin=self.path) if fullname == "__main__" else None  # type: ignore[arg-type]

    def get_code(self, fullname: str) -> CodeType:
        return compile(_PROGRAM, "<dllm_rl recipe>", "exec")  # named so that a traceback never quotes YAML as Python


def install() -> None:
    """Append the hook once; appended, so that it never answers before the interpreter's own."""
    if _RecipeFinder not in sys.path_hooks:
        sys.path_hooks.append(_RecipeFinder)
