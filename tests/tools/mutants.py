"""Break diffusion/ and objectives/ one expression at a time and see whether a fast test notices.

    .venv/bin/python tests/tools/mutants.py [dllm_rl/diffusion/corruption.py ...]

Prints survivors as diffs and the share killed per file; exits with 1 below 95%. Mutants that cannot change a result are
listed by hand, with the reason, in equivalent_mutants.txt beside this file: at most 5% of all.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib.abc
import importlib.machinery
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENTS = Path(__file__).with_name("equivalent_mutants.txt")
PACKAGES = ("dllm_rl/diffusion", "dllm_rl/objectives")
MORE_TESTS = {  # beside the tests of the package itself
    "dllm_rl/diffusion/trajectory.py": ["tests/samplers"],
    "dllm_rl/diffusion/ledger.py": ["tests/samplers"],
}
SEEN_ONLY_BY_OTHER_PROCESSES = "not importing_the_package"
WORKERS, SECONDS_PER_MUTANT, MEMORY = 2, 120, 24 << 30
SMALLEST_KILLED_SHARE, LARGEST_EQUIVALENT_SHARE = 0.95, 0.05
BROKEN_TOOL = 99

ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
BOOLEAN: dict[type[ast.operator], type[ast.operator]] = {
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
COMPARISON: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ALONG_A_DIMENSION = """
    all amax amin any argmax argmin argsort cat cummax cumsum flatten flip gather index_fill index_select log_softmax
    logcumsumexp logsumexp max mean min prod repeat_interleave scatter size softmax sort split stack std sum
    take_along_dim topk transpose unbind unflatten unsqueeze var
"""


@dataclass(frozen=True)
class Mutant:
    file: str
    operator: str
    line: int
    removed: str
    added: str
    tree: ast.Module

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.removed, self.added


def is_integer(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) is int


def dimensions(call: ast.Call) -> list[ast.expr]:
    """Integer literals that name a dimension in a call such as `x.sum(-1)` or `torch.cat(parts, dim=0)`."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if name not in ALONG_A_DIMENSION.split():
        return []
    return [node for node in [*call.args, *(k.value for k in call.keywords if k.arg == "dim")] if is_integer(node)]


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What an expression can be replaced by, with the name of the operator."""
    if isinstance(node, ast.BinOp | ast.AugAssign):
        for name, table in (("arithmetic", ARITHMETIC), ("boolean", BOOLEAN)):
            if type(node.op) in table:
                yield name, changed(node, op=table[type(node.op)]())
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in COMPARISON[type(node.ops[0])]:
            yield "comparison", changed(node, ops=[other()])
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            ops = list(node.ops)
            ops[i] = COMPARISON[type(op)][0]()
            yield "comparison", changed(node, ops=ops)
    if isinstance(node, ast.BoolOp):
        yield "boolean", changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    if isinstance(node, ast.IfExp):
        yield "boolean", changed(node, body=node.orelse, orelse=node.body)
    if isinstance(node, ast.UnaryOp):
        yield ("sign" if isinstance(node.op, ast.USub) else "boolean"), node.operand
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield "constant", ast.Constant(not node.value)
        elif isinstance(node.value, int | float):
            yield "constant", ast.Constant(node.value + 1)


def changed(node: ast.AST, **fields: object) -> ast.AST:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def other_dimension(node: ast.expr) -> ast.expr:
    value = ast.literal_eval(node)
    return ast.parse(str({0: 1, 1: 0, 2: 1, -1: -2, -2: -1}.get(value, value - 1)), mode="eval").body


def is_quiet(node: ast.AST) -> bool:
    """What no mutant is made from the inside of: imports and messages."""
    return isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom)


def is_droppable(statement: ast.stmt, seen: set[str]) -> bool:
    """Statements whose loss leaves a program that runs: not the first assignment of a name, not a definition."""
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.Assign):
        names = {n.id for target in statement.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        new = bool(names - seen) and all(isinstance(t, ast.Name | ast.Tuple) for t in statement.targets)
        seen |= names
        return not new
    return isinstance(statement, ast.AugAssign | ast.If | ast.For | ast.While | ast.Return | ast.Raise | ast.Delete)


def sites(parent: ast.AST, seen: set[str]) -> Iterator[tuple[str, ast.AST, str, int | None, ast.AST]]:
    """Everything below `parent` that can be swapped: the operator, where (parent, field, index), and for what."""
    if isinstance(parent, ast.FunctionDef):
        arguments = parent.args
        seen = {a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]}
    of_call = dimensions(parent) if isinstance(parent, ast.Call) else []
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "format_spec"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.stmt) and is_droppable(child, seen):
                yield "dropped statement", parent, field, index, ast.Pass()
            if is_quiet(child):
                continue
            if isinstance(child, ast.expr) and child in of_call:
                yield "dimension", parent, field, index, other_dimension(child)
            elif isinstance(child, ast.keyword) and child.value in of_call:
                yield "dimension", child, "value", None, other_dimension(child.value)
            else:
                yield from ((operator, parent, field, index, new) for operator, new in replacements(child))
                yield from sites(child, seen)


def mutants_of(file: str, source: str) -> list[Mutant]:
    module = ast.parse(source)
    plain = ast.unparse(module).splitlines()
    found: dict[tuple[str, str, str], Mutant] = {}
    for operator, parent, field, index, new in sites(module, set()):
        holder = getattr(parent, field)
        old = holder if index is None else holder[index]
        line = getattr(old, "lineno", getattr(parent, "lineno", 0))
        put(parent, field, index, new)
        removed, added = difference(plain, ast.unparse(ast.fix_missing_locations(module)).splitlines())
        mutant = Mutant(file, operator, line, removed, added, copy.deepcopy(module))
        put(parent, field, index, old)
        found.setdefault((str(line), removed, added), mutant)
    return list(found.values())


def put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def difference(before: Sequence[str], after: Sequence[str]) -> tuple[str, str]:
    """The lines that differ, from the first to the last one."""
    head = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    return tuple("\n".join(s.strip() for s in side[head : len(side) - tail]) for side in (before, after))  # type: ignore[return-value]


class Patch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module other code than its file has."""

    def __init__(self, file: str, tree: ast.Module) -> None:
        self.name = file.removesuffix(".py").replace("/", ".")
        self.file, self.tree = file, tree

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=str(ROOT / self.file))

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(ast.fix_missing_locations(self.tree), str(ROOT / self.file), "exec"), module.__dict__)


def tests_for(file: str) -> list[list[str]]:
    """The file's own tests, of which most mutants die; then those of its package and what else is listed for it."""
    package = Path(file).parent.name
    own = ROOT / f"tests/{package}/test_{Path(file).stem}.py"
    folders = [f"tests/{package}", *MORE_TESTS.get(file, [])]
    rest = [test for folder in folders for test in sorted((ROOT / folder).glob("test_*.py")) if test != own]
    return [[str(own)] if own.exists() else [], [str(test) for test in rest]]


def run_tests(file: str, tree: ast.Module | None) -> int:
    """In a forked child: pytest's exit status, with one module replaced."""
    import pytest

    if tree is not None:
        sys.meta_path.insert(0, Patch(file, tree))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    without = [f"-pno:{plugin}" for plugin in ("cacheprovider", "unraisableexception", "threadexception", "logging")]
    options = ["-x", "-q", "--rootdir", str(ROOT), "-o", "addopts=--import-mode=importlib", *without]
    chosen = ["-m", "not slow and not gpu", "-k", SEEN_ONLY_BY_OTHER_PROCESSES]
    for stage in filter(None, tests_for(file)):
        if status := int(pytest.main([*options, *chosen, *stage])):
            return status
    return 0


def fork(file: str, tree: ast.Module | None) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = BROKEN_TOOL
    try:
        signal.alarm(SECONDS_PER_MUTANT)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        status = run_tests(file, tree)
    finally:
        os._exit(status)


def killed(status: int) -> bool:
    """Tests failed, or the module did not import, or the process ran out of time or memory."""
    code = os.waitstatus_to_exitcode(status)
    if code in (BROKEN_TOOL, 4, 5):
        raise SystemExit(f"a test process ended with status {code}: no verdict on a mutant; run its tests by hand")
    return code != 0


def show(mutant: Mutant) -> None:
    print(f"\n{mutant.file}:{mutant.line}: {mutant.operator}")
    for sign, text in (("-", mutant.removed), ("+", mutant.added)):
        for row in text.splitlines():
            print(f"{sign} {row}", flush=True)


def survivors_of(mutants: Sequence[Mutant]) -> list[Mutant]:
    waiting, running, survivors = list(reversed(mutants)), {}, []
    while waiting or running:
        while waiting and len(running) < WORKERS:
            mutant = waiting.pop()
            running[fork(mutant.file, mutant.tree)] = mutant
        pid, status = os.wait()
        mutant = running.pop(pid)
        if not killed(status):
            survivors.append(mutant)
            show(mutant)
    return survivors


def read_equivalents() -> dict[tuple[str, str, str], str]:
    """Stanzas of a file name, `-` lines, `+` lines and the reason, separated by empty lines; `#` lines are comments."""
    text = "\n".join(s for s in EQUIVALENTS.read_text().splitlines() if not s.startswith("#"))
    equivalents = {}
    for stanza in filter(None, (part.strip() for part in text.split("\n\n"))):
        file, *body = stanza.splitlines()
        removed, added = ("\n".join(s[2:].strip() for s in body if s.startswith(sign)) for sign in "-+")
        reason = " ".join(s.strip() for s in body if not s.startswith(("-", "+")))
        if not reason:
            raise SystemExit(f"{EQUIVALENTS.name}: a mutant of {file} is listed without a reason:\n{stanza}")
        equivalents[file, removed, added] = reason
    return equivalents


def preload() -> None:
    """Import once, before forking, what is slow and never mutated."""
    import jaxtyping
    import numpy
    import pytest
    import torch
    import transformers

    assert all((jaxtyping, numpy, pytest, transformers))
    torch.set_num_threads(1)
    early = [name for name in sys.modules if name.startswith(tuple(p.replace("/", ".") for p in PACKAGES))]
    assert not early, f"imported before they could be replaced: {early}"
    gc.freeze()  # or every child would walk all of the above
    sys.path.insert(0, str(ROOT))


def check_unbroken(files: Sequence[str]) -> None:
    """Files with the same tests are checked once."""
    for file in {frozenset(test for stage in tests_for(file) for test in stage): file for file in files}.values():
        start = time.monotonic()
        _, status = os.waitpid(fork(file, None), 0)
        if killed(status):
            raise SystemExit(f"the tests of {file} fail without any mutant; run them by hand")
        print(f"the tests of {file} pass in {time.monotonic() - start:.0f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="default: every module of diffusion/ and objectives/")
    everything = [str(p.relative_to(ROOT)) for folder in PACKAGES for p in sorted((ROOT / folder).glob("*.py"))]
    files = parser.parse_args().files or [file for file in everything if not file.endswith("__init__.py")]
    os.chdir(ROOT)
    preload()
    check_unbroken(files)
    equivalents = read_equivalents()
    total: Counter[str] = Counter()
    killed_by_file: Counter[str] = Counter()
    used: set[tuple[str, str, str]] = set()
    for file in files:
        everyone = mutants_of(file, (ROOT / file).read_text())
        used |= {m.key for m in everyone if m.key in equivalents}
        mutants = [m for m in everyone if m.key not in equivalents]
        survivors = survivors_of(mutants)
        total[file], killed_by_file[file] = len(mutants), len(mutants) - len(survivors)
        print(f"\n{file}: killed {killed_by_file[file]} of {total[file]}", flush=True)
    check_unbroken(files)  # a test broken meanwhile would have killed everything
    return verdict(files, total, killed_by_file, used, equivalents)


def verdict(
    files: Sequence[str],
    total: Counter[str],
    killed_by_file: Counter[str],
    used: set[tuple[str, str, str]],
    equivalents: dict[tuple[str, str, str], str],
) -> int:
    print()
    for file in files:
        print(
            f"{file:45} {killed_by_file[file]:4} of {total[file]:4}  {killed_by_file[file] / max(total[file], 1):6.1%}"
        )
    share = killed_by_file.total() / total.total()
    print(f"{'all':45} {killed_by_file.total():4} of {total.total():4}  {share:6.1%}, {len(used)} equivalent left out")
    stale = [key for key in equivalents if key[0] in files and key not in used]
    for file, removed, added in stale:
        print(f"{EQUIVALENTS.name}: no such mutant of {file} any more, delete it:\n- {removed}\n+ {added}")
    too_many = len(used) > LARGEST_EQUIVALENT_SHARE * (total.total() + len(used))
    if too_many:
        print(f"{len(used)} equivalent mutants are more than {LARGEST_EQUIVALENT_SHARE:.0%} of all")
    return int(share < SMALLEST_KILLED_SHARE or too_many or bool(stale))


if __name__ == "__main__":
    sys.exit(main())
