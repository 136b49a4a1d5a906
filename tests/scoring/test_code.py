"""The code of a completion, and what HumanEval and MBPP make of it."""

from __future__ import annotations

from typing import Any

import pytest

from dllm_rl.errors import DataError
from dllm_rl.evaluation.metrics import evaluate
from dllm_rl.scoring.code import find_code, split_blocks
from dllm_rl.scoring.score import score
from tests.scoring.hosts import needs_isolation

DEF = "def f(x):\n    return x + 1\n"
PYTHON = "```python\n{}```".format

EXTRACTION = [
    (DEF, DEF),
    ("    return x + 1\n", "    return x + 1\n"),
    ("\treturn x + 1", "\treturn x + 1"),
    ("return x + 1", "return x + 1"),
    (PYTHON(DEF), DEF),
    (f"```\n{DEF}```", DEF),
    (f"```py\n{DEF}\n```", DEF + "\n"),
    (f"```Python3\n{DEF}```", DEF),
    (f"~~~python\n{DEF}~~~", DEF),
    (f"Sure!\n\n{PYTHON(DEF)}\nIt adds one.", DEF),
    (f"```python\r\n{DEF}```\r\nDone", DEF),
    (f"```python\n{DEF}", DEF),  # cut off
    (f"```python\n{DEF}``` and more", f"{DEF}``` and more"),  # no fence: text follows it
    ("1. So:\n   ```python\n   def f(x):\n       return x + 1\n   ```", DEF),
    (PYTHON("    return x + 1\n"), "    return x + 1\n"),
    ("    return x + 1\n```\nThat is all.", "    return x + 1\n"),
    (f"{DEF}```\nThat is all.", DEF),
    (f"Thus\n```\n{DEF}", DEF),  # a bare fence that opens
    (PYTHON("def f(x):\n    return x\n") + "\nNo:\n" + PYTHON(DEF), DEF),  # the last one counts
    (PYTHON(DEF) + "\nTry it:\n" + PYTHON("print(f(1))\n"), DEF),  # the one that defines it counts
    (f"{PYTHON(DEF)}\n```bash\npip install x\n```", DEF),
    (f"```bash\ndef f\n```\n{DEF}", DEF),
    (PYTHON("g = 1\n") + "\n" + DEF, DEF),
    (PYTHON("def g(x):\n    return 1\n") + "\n" + PYTHON("h = 2\n"), "h = 2\n"),
    (f"Here it is:\n\n{DEF}\nIt adds one to x.", DEF + "\n"),
    (f"Here it is:\nimport math\n\n{DEF}This is it.\n", f"import math\n\n{DEF}"),
    (f"LIMIT = 3\n{DEF}", f"LIMIT = 3\n{DEF}"),
    (
        f"from typing import *\n{DEF}\nprint(f(1))\nassert f(1) == 2\n",
        f"from typing import *\n{DEF}\nprint(f(1))\nassert f(1) == 2\n",
    ),
    (
        f"@cache\n{DEF}if __name__ == '__main__':\n    f(1)\nif you wonder, it adds.",
        f"@cache\n{DEF}if __name__ == '__main__':\n    f(1)\n",
    ),
    (
        'def f(x):\n    """\nNo code here.\n    """\n    return x\n',
        'def f(x):\n    """\nNo code here.\n    """\n    return x\n',
    ),
    ("async def f(x):\n    return x\nDone", "async def f(x):\n    return x\n"),
    ("The function def f(x): is simple", "The function def f(x): is simple"),
    ("def f2(x):\n    return 1\n\nSo.", "def f2(x):\n    return 1\n\nSo."),  # not the one that is asked for
    ("class f:\n    pass\nSo", "class f:\n    pass\n"),
    ("", ""),
    (f"<answer>{DEF}</answer>", DEF),
    (f"```python\ndef f(x):\n    return 0\n```\n<answer>\n{PYTHON(DEF)}\n</answer>", DEF),
    ("<answer>def f(x): pass</answer>\nNo:\n<answer>\n    return x + 1\n</answer> done", "    return x + 1\n"),
    ("<answer></answer>" + DEF, "\n"),
    (f'```python title="a.py" linenos=1\n{DEF}```', DEF),
    (f"```{{.python}}\n{DEF}```", DEF),
    (f"````python\n{DEF}````", DEF),
    (f"```python\n{DEF}```<|eot_id|>", DEF),
    (f"```python\n{DEF[:-1]}  # ``` stays\n````\nDone", f"{DEF[:-1]}  # ``` stays\n"),
    (f"~~~\n{DEF}```\n~~~", f"{DEF}```\n"),
    (
        'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return x\n'.join(("```python\n", "```")),
        'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return x\n',
    ),
    (PYTHON("f = lambda x: x + 1\n") + "\nTry it:\n" + PYTHON("print(f(1))\n"), "f = lambda x: x + 1\n"),
    (PYTHON("f == 1\n") + "\n" + PYTHON("ff = 1\n"), "ff = 1\n"),
    (f"def f(x):\n    return 0\n\nNo, rather:\n\n{DEF}\nSo.", f"def f(x):\n    return 0\n\n{DEF}\n"),
    (f"import math\n\nThen:\n\n{DEF}\nThis is it.\n", f"import math\n\n{DEF}\n"),
    (f"{DEF}\nThat is all.\nx = what is wanted\n", f"{DEF}\n"),
    ("\ufeff" + DEF, DEF),
    ("def f(x):\n\tif x:\n\t\treturn 1\n\treturn 2\n", "def f(x):\n\tif x:\n\t\treturn 1\n\treturn 2\n"),
    (DEF.replace("\n", "\r\n") + "\r\nDone", DEF.replace("\n", "\r\n") + "\r\n"),
    (f"[BEGIN]\n{DEF}[DONE]", DEF),
]


@pytest.mark.parametrize(("completion", "code"), EXTRACTION)
def test_the_code_of_a_completion(completion: str, code: str) -> None:
    assert find_code(completion, ["f"]) == code


def test_blocks_in_order() -> None:
    text = "```python\na\n```\n```js\nb\n```\n```\nc\n```\n```python\nd\n"
    assert split_blocks("x\n" + text) == (["a\n", "c\n", "d\n"], "x\n")
    assert split_blocks("```python\na\n```\ny") == (["a\n"], "y")


def test_long_completions_are_read_in_linear_time() -> None:
    for piece in ("```\n", "def g(x):\n", "x = ", '"""\n', "(", "  ", "@", "a.b[", "```python\n"):
        find_code(piece * 40_000 + "\ndef f(x): pass", ["f"])


HUMANEVAL = {
    "task_id": "T/0",
    "prompt": 'import math\n\ndef helper(x):\n    return x * 2\n\ndef f(x: float) -> int:\n    """Twice it."""\n',
    "entry_point": "f",
    "test": "def check(candidate):\n    assert candidate(1.5) == helper(1)\n    assert candidate(-0.5) == helper(-1)\n",
}
RIGHT = "    return helper(math.floor(x))\n"


@needs_isolation
@pytest.mark.parametrize(
    ("completion", "value"),
    [
        (RIGHT, 1),
        (RIGHT.lstrip(), 0),  # its leading white space is its own
        (PYTHON(RIGHT), 1),
        (PYTHON(HUMANEVAL["prompt"] + RIGHT), 1),
        (f"def f(x):\n{RIGHT}", 1),  # imports and helpers of the prompt hold
        (PYTHON(f"from __future__ import annotations\ndef f(x: Nothing):\n{RIGHT}"), 1),
        (f"    return g(x)\n\ndef g(x):\n{RIGHT}", 1),
        ("    return 2\n", 0),
        ("    pass\n", 0),
        ("", 0),
        (" \n", 0),
        ("def helper(x): return 7\ndef f(x): return 7\n", 0),  # the tests' helper is the prompt's
        ("    return 2\n\ndef check(candidate): pass\n", 0),
        ("    raise SystemExit(0)\n", 0),
        ("    return x\n\nprint('passed')\nexit(0)\n", 0),
        ("I do not know.", 0),
    ],
)
def test_humaneval(completion: str, value: float) -> None:
    assert score("humaneval", completion, HUMANEVAL).value == value


MBPP = {
    "task_id": 1,
    "text": "Add one.",
    "code": "class Box: pass\ndef f(x): pass",
    "test_setup_code": "box = Box()\nbox.x = 1",
    "test_list": ["assert f(1) == 2", "assert f(box.x) == 2", "assert math.isclose(f(2), 3)"],
}
BARE = {"test_setup_code": ""}


@needs_isolation
@pytest.mark.parametrize(
    ("completion", "row", "value"),
    [
        (f"class Box: pass\n{DEF}", {}, 1),
        (PYTHON(f"class Box: pass\n{DEF}"), {}, 1),
        ("[BEGIN]\n" + PYTHON(f"class Box: pass\n{DEF}") + "\n[DONE]", {}, 1),
        (DEF, {}, 0),  # the set-up needs Box
        (DEF, {"test_setup_code": "", "test_list": ["assert f(1) == 2"]}, 1),
        (DEF, {"test_setup_code": "", "test_list": ["assert f(1) == 2"], "code": None}, 1),
        (DEF, {"test_setup_code": None, "test_imports": ["import math as m"], "test_list": ["assert m.pi < f(3)"]}, 1),
        ("class Box: pass\ndef f(x): return 2", {}, 0),
        ("", {}, 0),
        ("def set(x): return x + 1", {**BARE, "test_list": ["assert set(1) == 2"], "code": "def set(x):\n    pass"}, 1),
        ("def f(x): return 1\ndef set(x): return 7", {**BARE, "test_list": ["assert set([f(1)]) == set([2])"]}, 0),
        (
            PYTHON(DEF) + "\n" + PYTHON("def sorted(x): return x\n"),
            {**BARE, "test_list": ["assert sorted([f(1)]) == [2]"]},
            1,
        ),
        (f"class Box: pass\n{DEF}\nbox = 5", {}, 1),  # code, set-up, tests: the set-up has the last word
    ],
)
def test_mbpp(completion: str, row: dict[str, Any], value: float) -> None:
    assert score("mbpp", completion, MBPP | row).value == value


@needs_isolation
def test_the_score_says_what_ran_and_why() -> None:
    found = score("humaneval", "So:\n" + PYTHON("def f(x):\n    return 0\n"), HUMANEVAL)
    assert found.answer == "def f(x):\n    return 0\n"
    assert found.explanation == "tests, line 2: AssertionError"
    assert score("humaneval", RIGHT, HUMANEVAL).explanation == "every test passes"


@needs_isolation
def test_many_at_once_keep_their_order() -> None:
    rows = [{"test_list": [f"assert f(1) == {i}"]} for i in (2, 3, 2, 5, 2, 2)]
    assert evaluate("mbpp", [DEF] * 6, rows).scores == [1, 0, 1, 0, 1, 1]


@needs_isolation
def test_a_prompt_that_is_no_program_is_refused_not_failed() -> None:
    with pytest.raises(DataError, match="these tests cannot be used: IndentationError"):
        score("humaneval", "    return 1\n", HUMANEVAL | {"prompt": "def f(x):\n"})
