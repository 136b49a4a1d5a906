"""Break diffusion/, objectives/ and the head's sums one expression at a time and see whether a fast test notices.

    .venv/bin/python tests/tools/mutants.py [dllm_rl/diffusion/corruption.py ...]

Prints survivors as diffs, then a table: per file and in all, how many mutants there are, how many were killed, ran out
of time (killed too: a loop without end), survived and are listed as equivalent, and the share killed of those not
listed. Exits with 1 below 95%. Mutants that cannot change a result are listed by hand, with the reason, in
equivalent_mutants.txt beside this file: at most 5% of all. Files and tests are read as they are while it runs.
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
ONLY_TESTS = {"dllm_rl/models/chosen.py": "tests/models/test_[cf]*.py"}
"""Single modules of other packages, with the tests that are to notice."""
MORE_TESTS = {  # beside the tests of the package itself
    "dllm_rl/diffusion/trajectory.py": "tests/samplers/test_*.py",
    "dllm_rl/diffusion/ledger.py": "tests/samplers/test_*.py",
    "dllm_rl/objectives/__init__.py": "tests/diffusion/test_names.py",
}
SEEN_ONLY_BY_OTHER_PROCESSES = "not importing_the_package"
WORKERS, MEMORY = os.cpu_count() or 1, 24 << 30
PROCESSOR_SECONDS, WAITING_SECONDS = 240, 3600  # a busy machine must not count as a mutant's loop without end
SMALLEST_KILLED_SHARE, LARGEST_EQUIVALENT_SHARE = 0.95, 0.05
BROKEN_TOOL = 99
COLUMNS = ("mutants", "killed", "out of time", "survived", "equivalent")

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


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


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
            if not isinstance(child, ast.AST) or is_for_type_checkers(child):
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
    """Gives one module or package other code than its file has."""

    def __init__(self, file: str, tree: ast.Module) -> None:
        self.name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.file, self.tree = file, tree

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        origin = ROOT / self.file
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=str(origin), is_package=origin.stem == "__init__")
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(str(origin.parent))
        return spec

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(ast.fix_missing_locations(self.tree), str(ROOT / self.file), "exec"), module.__dict__)


def tests_for(file: str) -> list[list[str]]:
    """The file's own tests, of which most mutants die; then those of its package and what else is listed for it."""
    package = Path(file).parent.name
    own = ROOT / f"tests/{package}/test_{Path(file).stem}.py"
    rest = sorted(ROOT.glob(ONLY_TESTS.get(file, f"tests/{package}/test_*.py")))
    if file in MORE_TESTS:
        rest += sorted(ROOT.glob(MORE_TESTS[file]))
    return [[str(own)] if own.exists() else [], [str(test) for test in rest if test != own]]


def run_tests(file: str, tree: ast.Module) -> int:
    """In a forked child: pytest's exit status, with one module replaced."""
    import pytest

    sys.meta_path.insert(0, Patch(file, tree))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    without = [f"-pno:{plugin}" for plugin in ("cacheprovider", "unraisableexception", "threadexception", "logging")]
    options = ["-x", "-q", "--rootdir", str(ROOT), "-o", "addopts=--import-mode=importlib", *without]
    chosen = ["-m", "not slow and not gpu", "-k", SEEN_ONLY_BY_OTHER_PROCESSES]
    for stage in filter(None, tests_for(file)):
        if status := int(pytest.main([*options, *chosen, *stage])):
            return status
    return 0


def fork(file: str, tree: ast.Module) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = BROKEN_TOOL
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS + 10))
        signal.alarm(WAITING_SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        status = run_tests(file, tree)
    finally:
        os._exit(status)


def outcome(status: int) -> str:
    """Killed: tests failed, or the module did not import, or the process ran out of memory."""
    code = os.waitstatus_to_exitcode(status)
    if code in (BROKEN_TOOL, 4, 5):
        raise SystemExit(f"a test process ended with status {code}: no verdict on a mutant; run its tests by hand")
    return {0: "survived", -signal.SIGALRM: "out of time", -signal.SIGXCPU: "out of time"}.get(code, "killed")


def show(mutant: Mutant) -> None:
    print(f"\n{mutant.file}:{mutant.line}: {mutant.operator}")
    for sign, text in (("-", mutant.removed), ("+", mutant.added)):
        for row in text.splitlines():
            print(f"{sign} {row}", flush=True)


def outcomes(mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str]]:
    waiting = list(reversed(mutants))
    running: dict[int, Mutant] = {}
    while waiting or running:
        while waiting and len(running) < WORKERS:
            mutant = waiting.pop()
            running[fork(mutant.file, mutant.tree)] = mutant
        pid, status = os.wait()
        yield running.pop(pid), outcome(status)


def count_outcomes(mutants: Sequence[Mutant]) -> Counter[str]:
    """How many of the mutants were killed, ran out of time and survived; shows the survivors as they come."""
    counts = Counter[str]()
    for mutant, what in outcomes(mutants):
        counts[what] += 1
        if what == "survived":
            show(mutant)
    return counts


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
    mutated = tuple(place.removesuffix(".py").replace("/", ".") for place in (*PACKAGES, *ONLY_TESTS))
    early = [name for name in sys.modules if name.startswith(mutated)]
    assert not early, f"imported before they could be replaced: {early}"
    gc.freeze()  # or every child would walk all of the above
    sys.path.insert(0, str(ROOT))


def check_unbroken(files: Sequence[str]) -> None:
    """Code put in as mutants are, but not changed, must survive: or their deaths would mean nothing."""
    start = time.monotonic()
    unchanged = [Mutant(file, "unchanged", 0, "", "", ast.parse((ROOT / file).read_text())) for file in files]
    for mutant, what in outcomes(unchanged):
        if what != "survived":
            raise SystemExit(f"the tests of {mutant.file}, without any mutant: {what}; run them by hand")
    print(f"the tests of {len(files)} files pass in {time.monotonic() - start:.0f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", help="default: every module of diffusion/ and objectives/, and models/chosen.py"
    )
    folders = [str(path.relative_to(ROOT)) for folder in PACKAGES for path in sorted((ROOT / folder).glob("*.py"))]
    files = parser.parse_args().files or [*folders, *ONLY_TESTS]
    start = time.monotonic()
    os.chdir(ROOT)
    preload()
    check_unbroken(files)
    equivalents = read_equivalents()
    counts: dict[str, Counter[str]] = {}
    stale = {key for key in equivalents if key[0] in files}
    for file in files:
        everyone = mutants_of(file, (ROOT / file).read_text())
        mutants = [mutant for mutant in everyone if mutant.key not in equivalents]
        stale -= {mutant.key for mutant in everyone}
        counts[file] = count_outcomes(mutants) + Counter(mutants=len(everyone), equivalent=len(everyone) - len(mutants))
        print(table_row(file, counts[file]), flush=True)
    check_unbroken(files)  # a test broken meanwhile would have killed everything
    for file, removed, added in stale:
        print(f"{EQUIVALENTS.name}: no such mutant of {file} any more, delete it:\n- {removed}\n+ {added}")
    passes = verdict(counts)
    print(f"{(time.monotonic() - start) / 60:.1f} minutes")
    return int(bool(stale) or not passes)


def share_killed(count: Counter[str]) -> float:
    return (count["killed"] + count["out of time"]) / max(count["mutants"] - count["equivalent"], 1)


def table_row(name: str, count: Counter[str]) -> str:
    return f"{name:36}" + "".join(f"{count[column]:12}" for column in COLUMNS) + f"{share_killed(count):12.1%}"


def verdict(counts: dict[str, Counter[str]]) -> bool:
    """Prints the table; whether enough mutants died, and few enough are listed as equivalent."""
    total = sum(counts.values(), Counter[str]())
    print("\n" + " " * 36 + "".join(f"{column:>12}" for column in (*COLUMNS, "share")))
    for name, count in {**counts, "all": total}.items():
        print(table_row(name, count))
    too_many = total["equivalent"] > LARGEST_EQUIVALENT_SHARE * total["mutants"]
    if too_many:
        print(f"{total['equivalent']} equivalent mutants are more than {LARGEST_EQUIVALENT_SHARE:.0%} of all")
    return share_killed(total) >= SMALLEST_KILLED_SHARE and not too_many


if __name__ == "__main__":
    sys.exit(main())
