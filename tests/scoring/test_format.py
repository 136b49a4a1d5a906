from __future__ import annotations

import pytest

from dllm_rl.scoring.format import is_soft, is_strict, tag_credit

STRICT = "<reasoning>\nfirst\n\nsecond\n</reasoning>\n<answer>\n4\n2\n</answer>"

CASES = [  # text, soft, strict, credit
    (STRICT, True, True, 1.0),
    (STRICT + "\n", True, True, 1.0),
    ("\n" + STRICT, True, False, 1.0),
    (STRICT + "\nmore", True, False, 1.0 - 0.002 * 4),
    (STRICT + "x" * 10_000, True, False, 0.0),
    ("<reasoning>a</reasoning><answer>b</answer>", True, False, 0.0),
    ("<reasoning>a\nb</reasoning>  \n <answer>c\nd</answer>", True, False, 0.0),
    ("hm <reasoning>a</reasoning><answer>b</answer>", False, False, 0.0),
    ("<answer>b</answer><reasoning>a</reasoning>", False, False, 0.0),
    (STRICT + STRICT, False, False, 0.0),
    ("<reasoning>\na\n</reasoning>\n", False, False, 0.5),
    ("", False, False, 0.0),
]


@pytest.mark.parametrize(("text", "soft", "strict", "credit"), CASES)
def test_layouts(text: str, soft: bool, strict: bool, credit: float) -> None:
    assert is_soft(text) is soft
    assert is_strict(text) is strict
    assert tag_credit(text) == pytest.approx(credit)
