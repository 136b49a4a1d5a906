"""YAML 1.2 scalars on PyYAML: ``1e-6`` is a number, ``no`` and ``12:30`` are text; a key given twice is an error."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from dllm_rl.errors import RecipeError

_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
# The core schema: https://yaml.org/spec/1.2.2/#1032-tag-resolution
_SCALARS = {
    _NULL: r"~|null|Null|NULL|",
    _BOOL: r"true|True|TRUE|false|False|FALSE",
    _INT: r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    _FLOAT: r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - the base class declares it; emptied of YAML 1.1's

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping: dict[Hashable, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise RecipeError(f"line {line}: the key {key!r} is not text; quote it")
            if key in lines:
                raise RecipeError(f"the key {key} is given twice, on lines {lines[key]} and {line}; keep one")
            lines[key] = line
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node))
    return float(text.replace(".inf", "inf").replace(".nan", "nan")) if text[-1].islower() else float(text)


for _tag, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), None)
_Loader.add_constructor(_INT, _int)
_Loader.add_constructor(_FLOAT, _float)


def parse(text: str, source: str) -> Any:
    """The one document in `text`.

    Raises:
        RecipeError: naming `source` and the line, if it is not YAML, has several documents or gives a key twice.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise RecipeError(f"{source}: {where}not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
