"""The process that runs the model's code: it answers calls, and knows of no test."""

from __future__ import annotations

import builtins
import io
import operator
import os
import pickle
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from dllm_rl.scoring.sandbox import wire

NAME = "candidate"


def seed_random(sources: Sequence[str]) -> None:
    """Make code that draws without a seed give the same verdict each time."""
    if any("random" in source for source in sources):
        import random

        random.seed(0)


def serve(sources: Sequence[str], requests: int, replies: int) -> None:
    """Run the sources in one namespace, one after the other, then answer requests until they end.

    Args:
        requests: descriptor with a frame per question, pickled by the judge.
        replies: descriptor for a frame per answer; the first says how the sources ended.
    """
    objects: list[Any] = []

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    module = types.ModuleType(NAME)
    sys.modules[NAME] = module
    wire.send(replies, _answer(lambda: _run(sources, module), keep))
    while True:
        try:
            question = wire.receive(requests)
        except wire.Closed:
            os._exit(0)
        wire.send(replies, _answer(lambda: _operate(question, module, objects), keep))  # noqa: B023


def _run(sources: Sequence[str], module: types.ModuleType) -> None:
    seed_random(sources)
    for source in sources:
        exec(compile(source, f"<{NAME}>", "exec", dont_inherit=True), module.__dict__)


def _operate(question: bytes, module: types.ModuleType, objects: list[Any]) -> Any:
    operation, *arguments = _Unpickler(io.BytesIO(question), objects).load()
    if operation == "global":
        (name,) = arguments
        if not hasattr(module, name):
            raise NameError(f"name {name!r} is not defined")
        return getattr(module, name)
    return _OPERATIONS[operation](*arguments)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, arguments, keywords: function(*arguments, **keywords),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
}


class _Unpickler(pickle.Unpickler):
    """The judge names objects of this process by number. It is trusted here; nothing is ever unpickled there."""

    def __init__(self, stream: io.BytesIO, objects: list[Any]) -> None:
        super().__init__(stream)
        self.objects = objects

    def persistent_load(self, number: Any) -> Any:
        return self.objects[number]


def _answer(work: Callable[[], Any], keep: Callable[[Any], int]) -> bytes:
    """What came of it: v and the value, or e, the exception's built-in class, its message and its own name."""
    try:
        return b"v" + wire.encode(work(), keep)
    except builtins.BaseException as error:
        try:
            message = str(error)[:300]
        except builtins.BaseException:
            message = ""
        known = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
        return b"e" + wire.encode([known, message, type(error).__name__], keep)
