"""The process that runs the tests: it calls the candidate over a pipe and sees plain data."""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from dllm_rl.scoring.sandbox import wire
from dllm_rl.scoring.sandbox.candidate import seed_random


class CandidateFailed(BaseException):
    """The candidate's process is gone, or it raised what does not derive from Exception: tests must not catch it so."""


class Unusable(BaseException):
    """The tests or their context cannot be run. No fault of the candidate's, so no test may catch it."""


class Channel:
    """Questions to the candidate, one at a time.

    Args:
        requests: descriptor to write to.
        replies: descriptor to read from.
        most: bytes that are read of one reply.

    Attributes:
        lost: why there are no more answers, once that is so. Then no test has passed, whatever it caught.
    """

    def __init__(self, requests: int, replies: int, most: int) -> None:
        self.requests, self.replies, self.most = requests, replies, most
        self.lost: str | None = None

    def ask(self, operation: str, *arguments: Any) -> Any:
        """The candidate's answer: a plain value, or a `Remote`.

        What it raised is raised here, as the nearest built-in class that it derives from.

        Raises:
            CandidateFailed: there is no answer.
            Unusable: the arguments cannot be sent.
        """
        stream = io.BytesIO()
        try:
            _Pickler(stream).dump((operation, *arguments))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise Unusable(f"a test hands over what cannot be sent to another process: {_say(error)}") from error
        try:
            wire.send(self.requests, stream.getvalue())
        except OSError as error:
            self.lost = "it ended"
            raise CandidateFailed(self.lost) from error
        return self.read(operation)

    def read(self, operation: str = "load") -> Any:
        """The answer to the operation; the first one, to loading the code, comes without a question."""
        try:
            reply = wire.receive(self.replies, self.most)
            value = wire.decode(reply[1:], lambda number: Remote(self, number))
        except wire.Closed as error:
            self.lost = f"it {error}"
            raise CandidateFailed(self.lost) from error
        if reply[:1] == b"v":
            return value
        name, message, own_name = (str(part)[:300] for part in value)
        kind = getattr(builtins, name, None)
        if kind is StopIteration and operation != "next":  # it would end a loop of the tests early, as if all were well
            kind = RuntimeError
        if isinstance(kind, type) and issubclass(kind, Exception):
            raised = _build(kind, message)
            raised.add_note("raised by the code" if own_name == type(raised).__name__ else f"the code's {own_name}")
            raise raised
        raise CandidateFailed(f"it raised {own_name}: {message}")


def _build(kind: type[Exception], message: str) -> Exception:
    """An exception of this class or, where that takes more than a message, of its nearest ancestor."""
    for ancestor in kind.__mro__:
        with contextlib.suppress(TypeError):
            if issubclass(ancestor, Exception):
                return ancestor(message)
    raise AssertionError(f"{kind} is no Exception")


class Remote:
    """An object that stays with the candidate. It equals nothing but itself: no method of its class decides that."""

    __slots__ = ("_channel", "_number")

    def __init__(self, channel: Channel, number: int) -> None:
        object.__setattr__(self, "_channel", channel)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._channel.ask("call", self, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._channel.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._channel.ask("setattr", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._channel.ask("getitem", self, key)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._channel.ask("iter", self)
        while True:
            try:
                yield self._channel.ask("next", iterator)
            except StopIteration:
                return

    def __len__(self) -> int:
        length: int = self._channel.ask("len", self)
        return length

    def __bool__(self) -> bool:
        truth: bool = self._channel.ask("bool", self)
        return truth


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> int | None:
        return value._number if type(value) is Remote else None


def judge(context: str, tests: str, entry_points: Sequence[str], channel: Channel) -> None:
    """Run the tests to their end; return if they pass.

    Args:
        context: trusted code that tests may use, such as helpers given in the prompt.
        tests: source. Names that nothing here defines are the candidate's.
        entry_points: names that are the candidate's whatever defines them here.

    Raises:
        BaseException: they do not pass.
        Unusable: they cannot be run.
    """
    seed_random([context, tests])
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(context, "<context>", "exec", dont_inherit=True), namespace)
        tree = ast.parse(tests)
    except BaseException as error:
        raise Unusable(_say(error)) from error
    channel.read()  # how the candidate's own code ended
    for name in [*entry_points, *_unbound(tree, {*namespace, *dir(builtins), *entry_points})]:
        namespace[name] = channel.ask("global", name)
    for name in _modules(tree, namespace):
        namespace[name] = import_module(name)
    exec(compile(tree, "<tests>", "exec", dont_inherit=True), namespace)


def _names(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Names that are read, and names that are bound somewhere."""
    read: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return read, bound


def _bare_modules(tree: ast.AST) -> set[str]:
    """Names of the standard library that are used for their attributes: tests lean on the imports of the solution."""
    nodes = [node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {node.id for node in nodes if isinstance(node, ast.Name)} & sys.stdlib_module_names


def _unbound(tree: ast.AST, known: set[str]) -> list[str]:
    read, bound = _names(tree)
    return sorted(read - bound - known - _bare_modules(tree))


def _modules(tree: ast.AST, namespace: dict[str, Any]) -> list[str]:
    return sorted(_bare_modules(tree) - _names(tree)[1] - namespace.keys())


def verdict(context: str, tests: str, entry_points: Sequence[str], channel: Channel) -> dict[str, Any]:
    """Whether the tests pass, and if not, why; `unusable` if that is the tests' fault."""
    try:
        judge(context, tests, entry_points, channel)
    except Unusable as error:
        return {"unusable": str(error)}
    except CandidateFailed as error:
        return {"passed": False, "reason": f"the code did not answer: {error}"}
    except BaseException as error:  # whatever tests raise, they have not passed
        return {"passed": False, "reason": _failure(error)}
    if channel.lost is not None:  # a test that expects an exception caught this instead
        return {"passed": False, "reason": f"the code did not answer: {channel.lost}"}
    return {"passed": True, "reason": "every test passes"}


def _failure(error: BaseException) -> str:
    """The exception, and the line of the tests that it came from."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"tests, line {line}: " if line else ""
    return f"{where}{_say(error)}"[:400]


def _say(error: BaseException) -> str:
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return (f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) + notes


def candidate_end(process: int) -> str | None:
    """How the candidate's process ended, if it has."""
    done, status = os.waitpid(process, os.WNOHANG)
    if not done:
        return None
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit code {code}"
