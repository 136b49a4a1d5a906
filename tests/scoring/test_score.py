"""Completions written by hand with the score they must have."""

from __future__ import annotations

import pytest

from dllm_rl.errors import DataError, RecipeError
from dllm_rl.scoring.score import score, score_all

A = "<answer>{}</answer>".format
B = r"\boxed{{{}}}".format

GSM8K = [  # gold is 42 unless given
    (A("42"), 1),
    (A(" 42\n"), 1),
    (A("41"), 0),
    (A("42.0"), 1),
    (A("42.00"), 1),
    (A("042"), 1),
    (A("42.5"), 0),
    (A("-42"), 0),
    (A("+42"), 1),
    (A("$42"), 1),
    (A(r"\$42"), 1),
    (A("42 dollars"), 1),
    (A("€42"), 1),
    (A("42%"), 1),
    (A(r"42\%"), 1),
    (A("42°"), 1),
    (A(r"42^\circ"), 1),
    (A("42 km/h"), 1),
    (A("42 m^2"), 1),
    (A("42 cm²"), 1),
    (A("42 more apples"), 1),
    (A("42 (apples)"), 1),
    (A("42 times"), 1),
    (A("42\\ \\mathrm{cm}"), 1),
    (A("42~\\text{cm}"), 1),
    (A("= 42"), 1),
    (A("#### 42"), 1),
    (A("`42`"), 1),
    (A("42 and a half"), 0),
    (A("42 minus x"), 0),
    (A("42."), 1),
    (A("**42**"), 1),
    (A("x = 42"), 1),
    (A("x=42"), 1),
    (A("Total: 42"), 1),
    (A("The answer is 42."), 1),
    (A("Janet makes $42 every day."), 1),
    (A("6 * 7 = 42"), 1),
    (A("84/2"), 1),
    (A(r"\frac{84}{2}"), 1),
    (A("6 * 7 = 41"), 0),
    (A("40 = 42"), 0),
    (A("6 * 7"), 0),
    (A("41 or 42"), 0),
    (A("42 or 41"), 0),
    (A("42 or so"), 0),
    (A("either 42"), 0),
    (A("about 42"), 0),
    (A("approximately 42"), 0),
    (A("not 42"), 0),
    (A("less than 42"), 0),
    (A("41, 42"), 0),
    (A("41 42"), 0),
    (A("41 and 42"), 0),
    (A("40-42"), 0),
    (A("40 - 42"), 0),
    (A("40\u201342"), 0),
    (A("40 to 42"), 0),
    (A("between 40 and 42"), 0),
    (A("up to 42"), 0),
    (A("42?"), 0),
    (A("~42"), 0),
    (A("42:00"), 0),
    (A("42x"), 0),
    (A("x + 42"), 0),
    (A("sqrt(42)"), 0),
    (A("forty-two"), 0),
    (A("42 thousand"), 0),
    (A(""), 0),
    (A("  \n"), 0),
    (A("4 2"), 0),
    ("42", 0),
    ("the answer is 42", 0),
    ("", 0),
    (B("42"), 1),
    (B(r"42\text{ apples}"), 1),
    (B(r"\text{42}"), 1),
    (B(r"\mathbf{42}"), 1),
    (r"\fbox{42}", 1),
    (B("41") + " no, " + B("42"), 1),
    (B("42") + " no, " + B("41"), 0),
    (B(""), 0),
    (B("42") + B(""), 0),
    (r"\boxed{\boxed{42}}", 1),
    (r"\boxed{42", 0),
    (B("41") + r" \boxed{42", 0),
    (A("41") + A("42"), 1),
    (A("42") + A("41"), 0),
    (A("42") + A(""), 0),
    (A("42") + B("41"), 1),
    (B("42") + A("41"), 0),
    (B("42") + A(""), 0),
    (A(B("42")), 1),
    (A("so it is " + B("42")), 1),
    ("<answer>42", 1),
    ("42</answer>", 0),
    ("work\n#### 42", 1),
    ("#### 41\n#### 42", 1),
    ("#### 42\nand more", 1),
    ("#### 42" + A("41"), 0),
    (B("41") + "\n#### 42", 0),
]

GSM8K_GOLD = [
    ("1,234", A("1234"), 1),
    ("1234", A("1,234"), 1),
    ("1234", A("1{,}234"), 1),
    ("1234", A(r"1,\!234"), 1),
    ("1234", A("$1,234.00"), 1),
    ("1234", A("1 234"), 1),
    ("1234", A("12,34"), 0),
    ("2000000", A("2 million"), 1),
    ("2", A("2 million"), 0),
    ("0.75", A("3/4"), 1),
    ("0.75", A(r"\frac34"), 1),
    ("3/4", A(".75"), 1),
    ("0.3333", A("1/3"), 0),
    ("1.5", A("1 1/2"), 1),
    ("1.5", A(r"1\frac{1}{2}"), 1),
    ("-5", A("-5"), 1),
    ("-5", A("\u22125"), 1),
    ("-5", A("-$5"), 1),
    ("-5", A("x - 5"), 0),
    ("0", A("-0"), 1),
    ("7", A("7:30"), 0),
    ("7", A("7 pm"), 0),
    ("7", A("7 p.m."), 0),
    ("50", A("50 percent"), 1),
    ("0.5", A("50%"), 0),
    ("5", A("1/0"), 0),
    ("1000", A("1e3"), 1),
]

MATH = [
    (r"\frac{3}{4}", "0.75", 1),
    ("0.75", r"\dfrac{3}{4}", 1),
    (r"\frac{1}{3}", "0.333333", 0),
    (r"\frac 59", "5/9", 1),
    (r"\frac43", r"1\frac13", 1),
    (r"\sqrt{51}", "7.14142842854285", 0),
    (r"\sqrt{51}", "51^{1/2}", 1),
    (r"3\sqrt{13}", r"\sqrt{117}", 1),
    (r"3\sqrt{13}", "10.816653826391969", 0),
    (r"\pi", "3.14159265358979", 0),
    (r"\pi", r"\frac{22}{7}", 0),
    (r"8 \pi", "8π", 1),
    ("p - q", "-q + p", 1),
    ("p - q", "q - p", 0),
    ("x=5", "5", 1),
    ("5", "x = 5", 1),
    ("x=5", "y = 5", 0),
    ("1,-2", "-2, 1", 1),
    ("1,-2", r"\{1, -2\}", 1),
    ("1,-2", r"x = 1 \text{ or } x = -2", 1),
    ("1,-2", "1", 0),
    ("1", "1, -2", 0),
    ("1,-2", "1, -2, 5", 0),
    ("2,2,3", "2,3,3", 0),
    ("3, 5, 7", "357", 0),
    ("41", "41 or 42", 0),
    ("41", r"41 \text{ or } 42", 0),
    ("-1", "41-42", 0),
    ("6", "3 to 6", 0),
    ("3", "3:00", 0),
    ("9", r"\approx 9", 0),
    (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}", 1),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}", 0),
    (r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt5, 1-\sqrt5", 1),
    (r"\text{Evelyn}", "Evelyn", 1),
    (r"\text{Evelyn}", r"\text{Evelyn or Navin}", 0),
    (r"\text{(C)}", "C", 1),
    (r"\text{(C)}", r"\textbf{(C)}", 1),
    (r"\text{(C)}", "B", 0),
    (r"\text{(C)}", "(c)", 1),
    (r"\text{even}", "not even", 0),
    ("52_8", "52_{8}", 1),
    ("52_8", "52", 0),
    ("52_8", "52_9", 0),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)", 1),
    (r"\left( 3, \frac{\pi}{2} \right)", "(3, 1.5707963267948966)", 0),
    ("(2,4)", "(4,2)", 0),
    ("(2,4)", "2,4", 0),
    ("(8,-2)", "(x,y) = (8,-2)", 1),
    ("(3,4]", "(3,4)", 0),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)\cup(-\infty,2)", 1),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)", 0),
    (r"x \in [-2,7]", "[-2,7]", 1),
    (r"x \in [-2,7]", r"-2 \le x \le 7", 1),
    ("y = 2x + 3", "3 + 2x", 1),
    ("5x - 7y + 11z + 4 = 0", "10x - 14y + 22z + 8 = 0", 1),
    ("5x - 7y + 11z + 4 = 0", "5x - 7y + 11z + 5 = 0", 0),
    (r"864 \mbox{ inches}^2", "864", 1),
    (r"864 \mbox{ inches}^2", "864 square inches", 1),
    (r"18+2\pi", r"18+2\pi \text{ cm}", 1),
    (r"90^\circ", "90", 1),
    (r"10,\!080", "10080", 1),
    (r"\$32,\!348", "32,348", 1),
    (".0000672", r"6.72 \times 10^{-5}", 1),
    ("2k", "2", 0),
    ("2k+2", "2(k+1)", 1),
    ("6 - 5i", "-5i+6", 1),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{pmatrix}-\frac13\\\frac23\end{pmatrix}", 1),
    (r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}", r"\begin{bmatrix}1&0\\0&1\end{bmatrix}", 1),
    (r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}", r"\begin{pmatrix}1\\0\\0\\1\end{pmatrix}", 0),
    ("(a+5)(b+2)", "ab+2a+5b+10", 1),
    ("x^3+3x-6", "x^{3}+3x+6", 0),
    (r"\cot x", r"\frac{\cos x}{\sin x}", 1),
    ("1024", "2^{10}", 1),
    ("120", "5!", 1),
    ("5", "5!", 0),
    ("18", "1 8", 0),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt3}\,\text{cm}", 1),
]

COUNTDOWN = [
    ("44 + 19 + 35", 1),
    ("19+35+44", 1),
    ("(44 + 19) + 35 = 98", 1),
    (r"44 + 19 + 35 \text{ is it}", 0),
    ("98", 0),
    ("44 + 19 + 35 = 99", 0),
    ("44 + 35", 0),
    ("44 + 19 + 35 + 0", 0),
    ("44 + 19 + 35 + 19 - 19", 0),
    ("44 * 19 + 35", 0),
    ("", 0),
    ("44 ++ 19 +", 0),
    ("(44 + 19 + 35", 0),
    ("44 + 19 + 35; import os", 0),
    ("__import__('os')", 0),
    ("44 // 19 + 35", 0),
    ("44 ** 19 + 35", 0),
    ("44 + 19 + 3_5", 0),
    ("44.0 + 19 + 35", 0),
]

SUDOKU_ROW = {"Puzzle": "3102200002100320", "Solution": "3142243142131324"}  # 8 empty cells
SUDOKU = [
    (A("3142243142131324"), 1.0),
    (A("3142\n2431\n4213\n1324"), 1.0),
    (A("3 1 | 4 2\n2 4 | 3 1\n----+----\n4 2 | 1 3\n1 3 | 2 4"), 1.0),
    (B("3142243142131324"), 1.0),
    (A("3142243142131323"), 7 / 8),
    (A("3102200002100320"), 0.0),
    (A("31422431"), 4 / 8),
    (A("3142243142131324" + "1"), 0.0),
    (A("the grid"), 0.0),
    (A(""), 0.0),
    ("3142243142131324", 0.0),
]


@pytest.mark.parametrize(("completion", "value"), GSM8K)
def test_gsm8k(completion: str, value: float) -> None:
    assert score("gsm8k", completion, {"question": "?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"}).value == value


@pytest.mark.parametrize(("gold", "completion", "value"), GSM8K_GOLD)
def test_gsm8k_numbers(gold: str, completion: str, value: float) -> None:
    assert score("gsm8k", completion, {"question": "?", "answer": f"#### {gold}"}).value == value


@pytest.mark.parametrize(("gold", "answer", "value"), MATH)
def test_math(gold: str, answer: str, value: float) -> None:
    assert score("math500", B(answer), {"problem": "?", "answer": gold}).value == value


@pytest.mark.parametrize(("answer", "value"), COUNTDOWN)
def test_countdown(answer: str, value: float) -> None:
    row = {"numbers": [44, 19, 35], "target": 98}
    assert score("countdown", A(answer), row).value == value


@pytest.mark.parametrize(
    "answer", ["30 * (10 - 3) / 7", r"30 \times (10-3) \div 7", r"\frac{30 \cdot (10-3)}{7}", "30\u00d7(10\u22123)÷7"]
)
def test_countdown_in_any_spelling(answer: str) -> None:
    assert score("countdown", B(answer), {"input": "30,10,3,7", "output": "30"}).value == 1


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"numbers": [1, 5, 5, 5], "target": 24}, "5 * (5 - 1/5)"),
        ({"numbers": "8, 3, 8, 3", "target": "24"}, "8/(3-8/3)"),
    ],
)
def test_countdown_is_exact(row: dict[str, object], answer: str) -> None:
    assert score("countdown", A(answer), row).value == 1


def test_countdown_division_by_zero_scores_zero() -> None:
    assert score("countdown", A("1 / (2 - 2)"), {"numbers": [1, 2, 2], "target": 1}).value == 0


@pytest.mark.parametrize(("completion", "value"), SUDOKU)
def test_sudoku(completion: str, value: float) -> None:
    assert score("sudoku", completion, SUDOKU_ROW).value == value


def test_sudoku_accepts_any_valid_completion_that_keeps_the_givens() -> None:
    row = {"puzzle": "1" + "." * 15, "solution": "1234341221434321"}
    assert score("sudoku", A("1234341243212143"), row).value == 1
    assert score("sudoku", A("2134342143121243"), row).value < 1  # a valid grid, but not of this puzzle
    assert score("sudoku", A("1234341243212144"), row).value < 1
    assert score("sudoku", A("1234234134124123"), row).value < 1  # rows and columns are right, boxes are not


def test_sudoku_9x9() -> None:
    solution = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
    puzzle = "".join(digit if place % 3 else "0" for place, digit in enumerate(solution))
    row = {"puzzle": puzzle, "solution": solution}
    assert score("sudoku", A(solution), row).value == 1
    assert score("sudoku", A("0" + solution[1:]), row).value == pytest.approx(26 / 27)


@pytest.mark.parametrize(
    ("completion", "value"),
    [("12", 1), ("7+5=12", 1), ("12 5", 0), ("012", 1), ("-12", 0), ("", 0), ("1 2", 0), ("x12y", 1)],
)
def test_arithmetic(completion: str, value: float) -> None:
    assert score("arithmetic", completion, {"question": "7+5=", "answer": 12}).value == value


def test_the_answer_is_reported() -> None:
    found = score("gsm8k", "so " + A(" 41 "), {"answer": "#### 42"})
    assert found.answer == "41"
    assert "42" in found.explanation
    assert score("gsm8k", "so 41", {"answer": "#### 42"}).answer is None


def test_unknown_task_lists_the_known() -> None:
    with pytest.raises(RecipeError, match="gsm8k, math500"):
        score("gsm", "x", {})


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("gsm8k", {}),
        ("gsm8k", {"answer": "no number"}),
        ("math500", {"problem": "?"}),
        ("countdown", {"numbers": [1, 2]}),
        ("countdown", {"numbers": "one", "target": 3}),
        ("countdown", {"numbers": [1], "target": 1.5}),
        ("countdown", {"numbers": [1.5], "target": 1}),
        ("sudoku", {"puzzle": 3102200002100320, "solution": "3142243142131324"}),
        ("sudoku", {"puzzle": "123", "solution": "123"}),
        ("sudoku", {"puzzle": "3142243142131324", "solution": "3142243142131324"}),
        ("arithmetic", {"answer": "twelve"}),
        ("humaneval", {"prompt": "def f():", "entry_point": "f"}),
        ("humaneval", {"prompt": "def f():", "entry_point": "f", "test": None}),
        ("mbpp", {"text": "?"}),
        ("mbpp", {"test_list": []}),
        ("mbpp", {"test_list": "assert f() == 1"}),
    ],
)
def test_rows_without_a_gold_answer_are_refused(task: str, row: dict[str, object]) -> None:
    with pytest.raises(DataError, match="expected"):
        score(task, A("1"), row)


def test_a_completion_must_be_text() -> None:
    with pytest.raises(DataError, match="expected text"):
        score("gsm8k", None, {"answer": "#### 1"})  # type: ignore[arg-type]


def test_threads_and_order_change_nothing() -> None:
    completions, rows = [B(answer) for _, answer, _ in MATH], [{"answer": gold} for gold, _, _ in MATH]
    backwards = score_all("math500", completions[::-1], rows[::-1])[::-1]
    assert [each.value for each in score_all("math500", completions, rows)] == [value for *_, value in MATH]
    assert [each.value for each in backwards] == [value for *_, value in MATH]


def test_many_keep_their_order_and_need_one_row_each() -> None:
    rows = [{"answer": str(i)} for i in range(50)]
    values = [each.value for each in score_all("math500", [B(i % 7) for i in range(50)], rows)]
    assert values == [1.0] * 7 + [0.0] * 43
    with pytest.raises(DataError, match="1 completions for 2 rows"):
        score_all("gsm8k", ["x"], [{}, {}])
