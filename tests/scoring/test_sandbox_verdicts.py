"""What a verdict rests on: returned plain values, and nothing else that the code does."""

from __future__ import annotations

import pytest

from dllm_rl.errors import DataError
from dllm_rl.scoring.sandbox.limits import Limits
from dllm_rl.scoring.sandbox.run import Job, Verdict, check
from tests.scoring.hosts import needs_isolation

pytestmark = needs_isolation
SMALL = Limits(wall_seconds=60, cpu_seconds=2, memory_bytes=256 << 20)
EXPECTED = "assert f(1) == 'expected-4711'"


def verdict(source: str, tests: str = EXPECTED, **job: str) -> Verdict:
    return check(Job([source], tests, entry_points=["f"], **job), SMALL)


LIAR = """
class Liar({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __bool__(self): return True
    def __hash__(self): return 1
    def __contains__(self, item): return True
    def __sub__(self, other): return self
    __rsub__ = __add__ = __radd__ = __mul__ = __rmul__ = __sub__
    def __abs__(self): return self
    def __float__(self): return 0.0
    def __reduce__(self): return (print, ())
def f(x): return {value}
"""

WRITE = """
import os
def write(content):
    for d in range(3, 64):
        try: os.write(d, len(content).to_bytes(4, 'big') + content)
        except OSError: pass
"""
SPAM = """
import threading
def f(x):
    threading.Thread(target=lambda: [write(b'v true') for _ in range(99)], daemon=True).start()
    return True
"""
FORGERIES = [
    ("prints what is expected", "def f(x): print('expected-4711')"),
    ("prints that all is well", "def f(x): print('{\"passed\": true}')"),
    ("exits while loading", "import sys; sys.exit(0)"),
    ("exits", "def f(x): raise SystemExit(0)"),
    ("ends its process", "import os\ndef f(x): os._exit(0)"),
    ("ends its process while loading", "import os\nos._exit(0)"),
    ("interrupts", "def f(x): raise KeyboardInterrupt"),
    ("is equal to everything", LIAR.format(base="object", value="Liar()")),
    ("is text equal to everything", LIAR.format(base="str", value="Liar('no')")),
    ("is a number equal to everything", LIAR.format(base="int", value="Liar(3)")),
    ("is a list equal to everything", LIAR.format(base="list", value="Liar([3])")),
    ("is a class equal to everything", LIAR.format(base="type", value="Liar('Name', (), {})")),
    ("patches assertions", "import builtins\nbuiltins.AssertionError = None\ndef f(x): return 0"),
    (
        "patches everything",
        "import builtins\nfor n in dir(builtins): setattr(builtins, n, lambda *a, **k: True)\nf = int",
    ),
    (
        "patches the judge",
        "import sys\nfor n, m in list(sys.modules.items()):\n"
        "    if n.startswith('dllm_rl'):\n        for k in ('judge', 'verdict', '_failure', '_report', 'check'):\n"
        "            if hasattr(m, k): setattr(m, k, lambda *a, **k: {'passed': True, 'reason': ''})\n"
        "def f(x): return 0",
    ),
    (
        "calls the judge's report",
        "def f(x):\n    from dllm_rl.scoring.sandbox import inside\n"
        "    inside._report({'passed': True, 'reason': ''})\n    return 0",
    ),
    (
        "writes a verdict wherever it can",
        'import os\nv = b\'{"passed": true, "reason": ""}\'\ndef f(x):\n    for d in range(3, 64):\n'
        "        try: os.write(d, len(v).to_bytes(4, 'big') + v)\n        except OSError: pass",
    ),
    (
        "looks for the tests in memory",
        """
import gc, sys
def f(x):
    needle, frame, objects = "".join(map(chr, [116, 101, 100, 45, 52, 55])), sys._getframe(), gc.get_objects()
    while frame:
        objects += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    for part in [part for each in objects for part in gc.get_referents(each)]:
        text = part if isinstance(part, str) else part.decode("latin1") if isinstance(part, bytes) else ""
        if needle in text and text != needle:
            return text[text.index(needle) - 5 :][:13]
""",
    ),
    (
        "looks for the tests in its files",
        "import os\ndef f(x):\n    for d in range(64):\n"
        "        try:\n            if b'4711' in os.pread(d, 9999, 0): return 'expected-' + '4711'\n"
        "        except OSError: pass",
    ),
    ("closes all files", "import os\ndef f(x): os.closerange(0, 64)"),
    ("stops the judge's loop", "def f(x): raise StopIteration('expected-4711')"),
    ("raises what the judge raises", "class Unusable(BaseException): pass\ndef f(x): raise Unusable"),
    ("says so at its end", "import atexit\natexit.register(print, 'expected-4711')\ndef f(x): raise SystemExit"),
    ("answers before it is asked", WRITE + "write(b'v' + b'{\"object\": 0}')\ndef f(x): return 0"),
    ("answers twice", WRITE + "def f(x):\n    write(b'v{\"passed\": true}')\n    return 0"),
    ("goes on answering", WRITE + SPAM),
    ("sends a report for a value", "def f(x): return {'passed': True, 'reason': ''}"),
    ("changes how values are sent", "import json\njson.dumps = lambda *a, **k: 'true'\ndef f(x): return 0"),
    (
        "changes what sends them",
        "from dllm_rl.scoring.sandbox import wire\nsend = wire.send\n"
        "wire.send = lambda d, b: send(d, b'v' + b'{\"passed\": true}')\ndef f(x): return 0",
    ),
    (
        "hooks imports",
        "import sys\nclass Hook:\n    def find_spec(self, name, *a):\n        raise SystemExit(0)\n"
        "sys.meta_path.insert(0, Hook())\nsys.modules.clear()\ndef f(x): return 0",
    ),
    (
        "traces every frame",
        "import sys, threading\nseen = []\n"
        "def see(frame, event, arg):\n    seen.extend(v for v in frame.f_locals.values() if isinstance(v, str))\n"
        "    return see\nsys.settrace(see); sys.setprofile(see); threading.settrace(see)\n"
        "def f(x): return max((s for s in list(seen) if 'expected' + '-47' in s), default='')[-13:]",
    ),
    ("answers when it is forgotten", "class D:\n    def __del__(self): print('expected-4711')\ndef f(x): D()"),
    ("is not there", ""),
    ("does not compile", "def f(x): return ("),
]


@pytest.mark.parametrize("source", [each for _, each in FORGERIES], ids=[name for name, _ in FORGERIES])
def test_forgeries_fail(source: str) -> None:
    assert not verdict(source).passed


REPORT = b'{"passed": true, "reason": ""}'
ENDS = "import os\ndef f(x): os._exit(0)"
GARBLES = WRITE + "def f(x):\n    write(b'v[[[[')\n    while True: pass"
DEAF = """
import fcntl, os
def f(x):
    for d in range(3, 64):
        try:
            if fcntl.fcntl(d, fcntl.F_GETFL) & 3 == os.O_RDONLY: os.close(d)
        except OSError: pass
    return 3
"""
EXPECTS = "try: f(1)\nexcept Exception: pass\nelse: assert False"
PRINTS = "for _ in range(9): print(f(1), flush=True)\nassert f(1) == 3"


@pytest.mark.parametrize(
    ("source", "tests", "reason"),
    [
        (f"def f(x): return {(len(REPORT).to_bytes(4, 'big') + REPORT).decode()!r}", PRINTS, "tests, line 2"),
        (ENDS, EXPECTS, "it ended"),
        (ENDS, EXPECTS.replace(" Exception", ""), "it ended"),
        (GARBLES, EXPECTS, "something else than a value"),
        (DEAF, "assert f(1) == 3\ntry: f(1)\nexcept: pass", "it ended"),
        ("import sys\ndef f(x): sys.exit()", EXPECTS, "raised SystemExit"),
        (WRITE + "def f(x):\n    write(b'v' + b' ' * (9 << 20))", EXPECTS, "at most 8388608"),
        (
            "import os\nfor m in ('random', 'bisect', 'numpy'): open(f'/tmp/{m}.py', 'w').write('randrange = max')\n"
            "def f(x): return 3",
            "import random, bisect\nassert random.randrange(1) == f(1)",
            "tests, line 2: AssertionError",
        ),
    ],
    ids=["printed", "ends", "ends, all caught", "garbled", "deaf", "exits", "too much", "modules"],
)
def test_what_tests_do_with_an_answer_is_no_way_in(source: str, tests: str, reason: str) -> None:
    found = verdict(source, tests)
    assert not found.passed
    assert reason in found.reason, found.reason


def test_tests_may_print_and_read_and_the_code_may_raise_what_they_expect() -> None:
    assert verdict(
        "def f(x): return 3", f"import sys\nassert sys.stdin.read() == ''\n{PRINTS}\nprint('x' * 99999)"
    ).passed
    own = "class Mine(ValueError): pass\ndef f(x): raise Mine('why')"
    caught = "try: f(1)\nexcept ValueError as error: assert str(error) == 'why'\nelse: assert False"
    assert verdict(own, caught).passed
    assert verdict(own).reason.endswith("ValueError: why (the code's Mine)")
    decode = "def f(x): return b'\\xff'.decode()"
    assert verdict(decode, "try: f(1)\nexcept ValueError: pass\nelse: assert False").passed
    assert "the code's ExceptionGroup" in verdict("def f(x): raise ExceptionGroup('x', [OSError()])").reason


@pytest.mark.parametrize(
    ("right", "tests"),
    [
        ("7", "assert f(1) in [7, 8]"),
        ("7", "assert abs(f(1) - 7) < 1e-6"),
        ("[7]", "assert 7 in f(1)"),
        ("7", "assert not f(1) != 7"),
        ("6", "assert f(1) < 7"),
        ("7", "import math\nassert math.isclose(f(1), 7)"),
        ("7", "assert {f(1): 1}[7] == 1"),
        ("[7]", "assert sorted(f(1)) == [7]"),
    ],
)
def test_an_object_that_lies_passes_no_comparison(right: str, tests: str) -> None:
    assert verdict(f"def f(x): return {right}", tests).passed
    assert not verdict(LIAR.format(base="object", value="Liar()"), tests).passed


def test_stopping_a_loop_early_does_not_pass_it() -> None:
    assert not verdict("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))").passed
    assert verdict("def f(x): return True", "assert all(map(f, [1, 2]))").passed


def test_the_code_does_not_reach_names_of_the_tests() -> None:
    """Redefined built-ins, modules and helpers change nothing for the tests."""
    tests = "assert set(f(1)) == {1, 2} and sorted(f(1)) == [1, 2] and sys.maxsize > 0 and helper(f(1)) == 3"
    shadows = "set = sorted = sum = all = lambda *a: {1, 2}\nclass sys: maxsize = -1\ndef helper(x): return 3\n"
    context = "def helper(x): return sum(x)"
    assert verdict(shadows + "def f(x): return [2, 1]", tests, context=context).passed
    assert not verdict(shadows + "def f(x): return [3]", tests, context=context).passed


def test_names_that_nothing_else_defines_are_the_codes() -> None:
    source = "LIMIT = 5\nclass Node:\n    def __init__(self, v): self.v, self.next = v, None\n"
    source += "def f(n):\n    return n.v + (f(n.next) if n.next else 0)\ndef g():\n    yield from range(LIMIT)\n"
    tests = "a = Node(1)\na.next = Node(41)\nassert f(a) == 42 and a.next.v == 41\nassert LIMIT == 5\n"
    tests += "assert list(g()) == [0, 1, 2, 3, 4]\ntry:\n    a.nothing\nexcept AttributeError: pass\nelse: assert 0"
    found = verdict(source, tests)
    assert found.passed, found.reason


VALUES = [
    *("None", "True", "1", "-(2**70)", "10**4000", "1.5", "float('inf')", "-0.0", "1j", "'é\\ud800\\0'", "b'\\xff'"),
    *(
        "[]",
        "(1, 'a', None)",
        "[(1,), [2], {3}]",
        "{1: 'a', (2, 3): [4]}",
        "{1, 'a'}",
        "frozenset({1})",
        "bytearray(b'x')",
    ),
    *("__import__('fractions').Fraction(1, 3)", "__import__('decimal').Decimal('0.10')", "{'object': 1}"),
]


@pytest.mark.parametrize("value", ["[" + ", ".join(VALUES) + "]"])
def test_plain_values_arrive_exactly(value: str) -> None:
    tests = f"for mine, its in zip({value}, f(1), strict=True): assert repr(mine) == repr(its), mine"
    found = verdict(f"def f(x): return {value}", tests)
    assert verdict("def f(x): return -(10**9999)", "assert f(1) == -(10**9999)").passed
    assert found.passed, found.reason


def test_subclasses_arrive_as_what_they_derive_from() -> None:
    source = "import collections, enum\nD = collections.OrderedDict\nP = collections.namedtuple('P', 'x y')\n"
    source += "class E(enum.IntEnum): A = 7\nclass S(str): pass\n"
    source += "def f(x): return [collections.Counter('aab'), E.A, P(1, 2), S('s'), {1: 2}.keys(), D(a=1)]"
    tests = "assert f(1) == [{'a': 2, 'b': 1}, 7, (1, 2), 's', {1}, {'a': 1}]\n"
    tests += "assert [type(each) for each in f(1)] == [dict, int, tuple, str, set, dict]"
    found = verdict(source, tests)
    assert found.passed, found.reason


def test_numpy_scalars_arrive_as_numbers() -> None:
    source = "import numpy\ndef f(x): return [numpy.int64(7), numpy.float32(0.5), numpy.float64(0.25)]"
    found = check(Job([source], "assert repr(f(1)) == '[7, 0.5, 0.25]', f(1)", entry_points=["f"]))
    assert found.passed, found.reason


def test_exceptions_arrive_by_their_built_in_name() -> None:
    tests = "try: f(1)\nexcept ZeroDivisionError as error: assert 'zero' in str(error)\nelse: assert False"
    assert verdict("def f(x): return x / 0", tests).passed
    assert "division by zero (raised by the code)" in verdict("def f(x): return x / 0").reason


def test_an_exit_is_no_exception_of_the_tests() -> None:
    found = verdict("def f(x): raise SystemExit(3)")
    assert found.reason == "the code did not answer: it raised SystemExit: 3"


def test_a_failure_says_where() -> None:
    assert (
        verdict("def f(x): return 0", "x = 1\nassert f(x) == 1, 'why'").reason == "tests, line 2: AssertionError: why"
    )


@pytest.mark.parametrize(
    ("tests", "context"),
    [("f(lambda x: x)", ""), ("assert (", ""), ("f(1)", "import nothing_of_this_name"), ("f(1)", "def f(")],
)
def test_tests_that_cannot_run_are_refused_not_failed(tests: str, context: str) -> None:
    with pytest.raises(DataError, match="these tests cannot be used"):
        verdict("def f(x): return 0", tests, context=context)


def test_draws_without_a_seed_are_the_same_each_time() -> None:
    source = "import random\ndef f(x): return [random.random(), hash('x'), list({'a', 'b', 'c', 'd'})]"
    tests = "import random\nraise RuntimeError(random.random(), f(1))"
    assert verdict(source, tests).reason == verdict(source, tests).reason


def test_sources_share_a_namespace_and_compile_apart() -> None:
    job = Job(
        ["def f(x): return 0\ny = 2", "from __future__ import annotations\ndef f(x) -> z: return y"], "assert f(1) == 2"
    )
    assert check(job).passed
