"""The options of upstream dataclasses, read from their source: importing them would import torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

from dllm_rl.errors import RecipeError

_SIMPLE: dict[str, tuple[type, ...]] = {
    "float": (float, int),
    "int": (int,),
    "bool": (bool,),
    "str": (str,),
    "dict": (dict,),
    "None": (type(None),),
}


@functools.cache
def options(package: str, module: str, class_name: str) -> dict[str, str]:
    """The annotated fields of a class, as name -> annotation, without importing its package.

    Args:
        module: path inside the package, such as ``tuners/lora/config.py``.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(
            f"{package} is not installed, and the recipe uses its options; install dllm-rl with its requirements"
        )
    path = Path(spec.submodule_search_locations[0]) / module
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            return {ast.unparse(field.target): ast.unparse(field.annotation) for field in fields}
    raise RecipeError(
        f"{path} has no class {class_name}: this version of {package} is not supported; see pyproject.toml"
    )


def training_arguments() -> dict[str, str]:
    """What ``train`` passes to `transformers.TrainingArguments`."""
    return options("transformers", "training_args.py", "TrainingArguments")


def lora_config() -> dict[str, str]:
    """What ``model.lora`` passes to `peft.LoraConfig`."""
    return options("peft", "tuners/lora/config.py", "LoraConfig")


def accepts(annotation: str, value: object) -> bool:
    """Whether a value fits an annotation; True where the annotation has parts that are not simple types."""
    parts = [part.strip() for part in annotation.split("|")]
    if not all(part in _SIMPLE for part in parts):
        return True
    if isinstance(value, bool):
        return "bool" in parts
    return any(isinstance(value, _SIMPLE[part]) for part in parts)
