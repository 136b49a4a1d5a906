"""The reward functions that come with the library, through the panel that calls them in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dllm_rl.errors import RewardError
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.shipped import shipped_root
from tests.scoring.hosts import has_namespaces

LAID_OUT = "<reasoning>\none\ntwo\n</reasoning>\n<answer>\n{}\n</answer>"
SUDOKU = {"puzzle": ["3102200002100320"] * 3, "solution": ["3142243142131324"] * 3}

CASES: list[tuple[str, Sequence[str], dict[str, list[Any]], list[float]]] = [
    (
        "gsm8k.py:correctness",
        [LAID_OUT.format("$1,234"), r"\boxed{5}", "7"],
        {"answer": ["#### 1234", "5", "7"]},
        [1, 1, 0],
    ),
    ("gsm8k.py:integer", [LAID_OUT.format("42"), "<answer>42.0</answer>", "42"], {"answer": ["42"] * 3}, [1, 0, 0]),
    ("format.py:soft", [LAID_OUT.format(1), "<reasoning>a</reasoning><answer>b</answer>", "b"], {}, [1, 1, 0]),
    ("format.py:strict", [LAID_OUT.format(1), "<reasoning>a</reasoning><answer>b</answer>", "b"], {}, [1, 0, 0]),
    ("format.py:tags", [LAID_OUT.format(1), "<reasoning>\na\n</reasoning>\n", "b"], {}, [1, 0.5, 0]),
    (
        "math.py:correctness",
        [r"\boxed{0.5}", r"<answer>$\frac12$</answer>", "1/2"],
        {"answer": [r"\frac{1}{2}"] * 3},
        [1, 1, 0],
    ),
    (
        "math.py:correctness",
        [r"\boxed{2\sqrt2}", r"\boxed{\sqrt9}", r"\boxed{x}"],
        {"answer": [r"\sqrt{8}"] * 3},
        [1, 0, 0],
    ),
    (
        "math.py:layout",
        [r"<answer>\boxed{1}</answer>", "<answer>1</answer>", r"\boxed{1}"],
        {"answer": ["1"] * 3},
        [1, 0.75, 0.5],
    ),
    ("math.py:layout", ["", r"\boxed{1", "<answer>"], {"answer": ["1"] * 3}, [0.25, 0.25, 0.75]),
    (
        "countdown.py:correctness",
        [r"\boxed{1+2+3}", r"\boxed{1*2-3}", "6"],
        {"numbers": [[1, 2, 3]] * 3, "target": [6] * 3},
        [1, 0, 0],
    ),
    (
        "countdown.py:graded",
        [r"\boxed{1+2+3}", r"\boxed{1*2-3}", r"\boxed{6}"],
        {"input": ["1,2,3"] * 3, "output": ["6"] * 3},
        [1, 0.1, 0],
    ),
    (
        "countdown.py:graded",
        ["", r"\boxed{}", r"\boxed{1+2+3/0}"],
        {"input": ["1,2,3"] * 3, "output": ["6"] * 3},
        [0, 0, 0],
    ),
    ("sudoku.py:cells", ["<answer>3142243142131324</answer>", "<answer>31422431</answer>", "?"], SUDOKU, [1, 0.5, 0]),
    # Every empty cell is right, but a given is overwritten; all right; nothing.
    (
        "sudoku.py:cells",
        ["<answer>4142243142131324</answer>", "<answer>3142243142131324</answer>", ""],
        SUDOKU,
        [1, 1, 0],
    ),
    (
        "sudoku.py:solved",
        ["<answer>4142243142131324</answer>", "<answer>3142243142131324</answer>", ""],
        SUDOKU,
        [0, 1, 0],
    ),
    ("sudoku.py:solved", ["<answer>3142243142131324</answer>", "<answer>31422431</answer>", "?"], SUDOKU, [1, 0, 0]),
    ("arithmetic.py:correctness", ["12", "1 2", "-12"], {"answer": ["12"] * 3}, [1, 0, 0]),
    ("length.py:overlong", ["", "a", "b"], {}, [0, -0.5, -1]),
    ("speed.py:fewer_forwards", ["", "a", "b"], {}, [-0.02, -0.5, -1.0]),
    ("column_sum.py:correctness", ["12,13#0012", "12#1", "0012"], {"answer": ["12"] * 3}, [1, 0, 0]),
    (
        "small_sudoku.py:correctness",
        ["3142243142131324", "4142243142131324", "<answer>3142243142131324</answer>"],
        {"puzzle": SUDOKU["puzzle"]},
        [1, 0, 0],
    ),
    (
        "code.py:mbpp",
        ["```python\ndef sum(a, b):\n    return a + b\n```", "def sum(a, b): return a", "3"],
        {"test_list": [["assert sum(1, 2) == 3"]] * 3, "code": ["def sum(a, b): pass"] * 3},
        [1, 0, 0],
    ),
    (
        "code.py:humaneval",
        ["    return x + 1", "    return x", "```python\ndef f(x):\n    return 1 + x\n```"],
        {"entry_point": ["f"] * 3, "test": ["def check(candidate):\n    assert candidate(1) == 2"] * 3},
        [1, 0, 1],
    ),
]


@pytest.mark.parametrize(("reference", "texts", "columns", "expected"), CASES)
@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_rewards(
    reference: str, texts: Sequence[str], columns: dict[str, list[Any]], expected: list[float], chat: bool
) -> None:
    completions = [[{"role": "assistant", "content": text}] if chat else text for text in texts]
    columns = {**columns, "unrelated": [None] * 3}
    panel = RewardPanel.load([f"rewards/{reference}"])
    if reference.startswith("code.py") and not has_namespaces():
        pytest.skip("this host lets nobody make namespaces")
    text = 'def f(x):\n    """The number after x."""\n' if reference.endswith("humaneval") else "p"
    prompt = [{"role": "user", "content": text}] if chat else text
    made, ids = {"forwards": [1, 25, 50], "gen_length": [80, 80, 64]}, [[5] * length for length in (16, 48, 64)]
    assert panel([prompt] * 3, completions, ids, columns, rollout=made).total == pytest.approx(expected)


@pytest.mark.parametrize(("reference", "missing"), [("sudoku.py:cells", "puzzle"), ("countdown.py:graded", "numbers")])
def test_data_without_the_columns_are_told_which(reference: str, missing: str) -> None:
    with pytest.raises(RewardError, match=f"DataError: .* expected {missing}"):
        RewardPanel.load([f"rewards/{reference}"])(["p"], ["<answer>1</answer>"], [[]], {"question": ["?"]})


def test_room_to_spare_is_worth_nothing_and_short_canvases_cost_from_the_first_position() -> None:
    made = {"forwards": [1] * 4, "gen_length": [80, 80, 32, 32]}
    ids = [[5] * length for length in (1, 80, 8, 32)]
    panel = RewardPanel.load(["rewards/length.py:overlong"])
    assert panel(["p"] * 4, ["c"] * 4, ids, {}, rollout=made).total == [0.0, -1.0, -0.25, -1.0]


def test_every_shipped_function_is_tested() -> None:
    over_http = {"judge.py:verdict", "teacher.py:log_likelihood"}  # test_judge.py, test_teacher.py
    tested = {reference for reference, *_ in CASES} | over_http
    for file in (shipped_root() / "rewards").glob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("def ") and not line.startswith("def _"):
                assert f"{file.name}:{line[4:].partition('(')[0]}" in tested


def test_the_released_recipe_of_d1_adds_up_to_four() -> None:
    references = ["gsm8k.py:correctness", "gsm8k.py:integer", "format.py:soft", "format.py:strict", "format.py:tags"]
    panel = RewardPanel.load([f"rewards/{name}" for name in references], weights=[2, 0.5, 0.5, 0.5, 0.5])
    assert panel(["p"], [LAID_OUT.format(42)], [[]], {"answer": ["#### 42"]}).total == [4.0]
