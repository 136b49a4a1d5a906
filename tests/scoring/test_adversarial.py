"""Input that is meant to be slow, to crash or to run: bounded work, and a score of 0."""

from __future__ import annotations

import pytest

from dllm_rl.scoring import math as scoring_math
from dllm_rl.scoring.format import is_soft, is_strict, tag_credit
from dllm_rl.scoring.score import TASKS, score

HARMLESS = ["1e999999999", "<answer>" * 12_000, "\ud800", "\\undefined", "}{", "\n", '"', "null"]
ROWS = {
    "gsm8k": {"answer": "#### 42"},
    "math500": {"answer": "42"},
    "countdown": {"numbers": [9, 9, 9], "target": 42},
    "sudoku": {"puzzle": "3102200002100320", "solution": "3142243142131324"},
    "arithmetic": {"answer": "42"},
}
BOMBS = [
    "9**9**9**9",
    "9^9^9^9",
    "9^{9^{9^9}}",
    "2^{99999999}",
    "99999999!",
    "9!!!!!!!!",
    "9" * 100_000,
    "9," * 50_000,
    "9 " * 50_000,
    "9+" * 50_000,
    "-" * 100_000 + "9",
    "(" * 100_000,
    "{" * 100_000,
    "}" * 100_000,
    "\\frac{" * 15_000,
    "\\frac" + "{1}" * 30_000,
    "\\boxed{" * 15_000,
    "\\boxed{" * 7_000 + "9" + "}" * 7_000,
    "\\begin{pmatrix}" * 6_000,
    "\\text{" * 15_000,
    "<answer></answer>" * 6_000,
    "####" * 25_000,
    "x=" * 50_000,
    "a" * 100_000,
    "\x00" * 1000,
    "__import__('os').system('touch /tmp/owned')",
]


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """These must be refused before a worker would spend its deadline on them."""

    def refuse(gold: str, answer: str) -> bool:
        raise AssertionError(f"a worker was asked about {answer[:60]!r}")

    monkeypatch.setattr(scoring_math, "expressions_equal", refuse)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.encode("utf-8", "replace")[:12].decode())
@pytest.mark.usefixtures("no_worker")
def test_bombs_score_zero_at_once(task: str, bomb: str) -> None:
    for completion in (bomb, f"<answer>{bomb}</answer>", rf"\boxed{{{bomb}}}"):
        assert score(task, completion, ROWS[task]).value == 0


@pytest.mark.parametrize("text", HARMLESS)
def test_nonsense_that_a_worker_may_see_scores_zero(text: str) -> None:
    for completion in (text, f"<answer>{text}</answer>", rf"\boxed{{{text}}}"):
        assert score("math500", completion, ROWS["math500"]).value == 0


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.encode("utf-8", "replace")[:12].decode())
def test_formats_of_bombs(bomb: str) -> None:
    text = f"<reasoning>{bomb}"
    assert not is_soft(text)
    assert not is_strict(text)
    assert 0 <= tag_credit(text) <= 1


def test_short_expressions_of_huge_numbers_are_bounded() -> None:
    product = "*".join(["9" * 30] * 8)
    assert score("countdown", f"<answer>{product}</answer>", ROWS["countdown"]).value == 0
    assert score("gsm8k", f"<answer>{product}={product}</answer>", ROWS["gsm8k"]).value == 0
