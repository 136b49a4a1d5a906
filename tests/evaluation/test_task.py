"""Tasks: their prompts hold the problem, never the answer; gold answers score 1; files of one's own load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dllm_rl.errors import DataError, RecipeError
from dllm_rl.evaluation.task import EvalTask, load_task, variant_of
from dllm_rl.rollouts.text import prompt_text
from dllm_rl.shipped import shipped_root
from tests.scoring.hosts import needs_isolation

FILES = {
    "gsm8k": "gsm8k/test.jsonl",
    "math500": "math500/test.jsonl",
    "countdown": "countdown/test.jsonl",
    "sudoku": "sudoku/4x4_test.csv",
    "humaneval": "humaneval/HumanEval.jsonl",
    "mbpp": "mbpp/mbpp.jsonl",
}
COUNTS = {"gsm8k": 1319, "math500": 500, "countdown": 256, "sudoku": 500, "humaneval": 164, "mbpp": 500}
CODE = ("humaneval", "mbpp")


def load(name: str, shared: Path) -> EvalTask:
    return load_task(name, path=str(shared / "data" / FILES[name]))


@pytest.mark.parametrize("name", FILES)
def test_published_rows(name: str, shared: Path) -> None:
    task = load(name, shared)
    examples = task.examples()
    assert (task.name, task.version, len(examples)) == (name, 2, COUNTS[name])
    for example in examples:
        messages = task.prompt(example)
        assert not isinstance(messages, str)
        assert [message["role"] for message in messages] == ["user"]
        if name in CODE:
            given = [example["prompt"]] if name == "humaneval" else [example["text"], *example["test_list"]]
            assert all(text in messages[0]["content"] for text in ["```python", *given])
            continue
        assert "<answer>" in messages[0]["content"]
        assert "{" not in prompt_text(messages).replace(str(example.get("problem")), "").replace(r"\boxed{...}", "")


MATH_EXPERT = "You are a math expert. You will be given a question to solve. Solve it step by step. Wrap the final "
VARIANTS = {
    ("gsm8k", "d1"): MATH_EXPERT,
    ("gsm8k", "llada"): "Janet",
    ("math500", "d1"): MATH_EXPERT,
    ("math500", "llada"): "Convert the point",
    ("countdown", "d1"): "Using only the provided numbers, create an arithmetic expression that evaluates to exactly ",
    (
        "sudoku",
        "d1",
    ): "\nPlease solve the following 4x4 Sudoku puzzle. The puzzle is provided as a 16-character ",
    ("humaneval", "llada"): "Complete the following python code:\nfrom typing import List",
    ("humaneval", "continue"): "from typing import List",
    ("mbpp", "llada"): "You are an expert Python programmer, and here is your task: Write a python function to remove ",
    ("gsm8k", "5-shot"): "Question: Natalia sold clips to 48 of her friends",
    (
        "mbpp",
        "3-shot",
    ): "You are an expert Python programmer, and here is your task: Write a function to find the similar ",
}


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_prompts_of_others_by_name(name: str, variant: str, shared: Path) -> None:
    task = load_task(name, path=str(shared / "data" / FILES[name]), prompt=variant)
    example = task.examples()[0]
    prompt = task.prompt(example)
    assert variant_of(task) == variant and prompt_text(prompt).startswith(VARIANTS[name, variant])
    begins = not isinstance(prompt, str) and prompt[-1] == {"role": "assistant", "content": "<reasoning>\n"}
    assert begins == (variant == "d1")
    columns = {"countdown": [], "sudoku": ["Puzzle"], "mbpp": ["text"], "humaneval": ["prompt"], "gsm8k": ["question"]}
    assert all(example[column] in prompt_text(prompt) for column in columns.get(name, ["problem"]))
    assert "{" not in prompt_text(prompt).replace("\\boxed{", "").replace(str(example.get("problem")), "")


def test_solved_examples_before_the_question(shared: Path) -> None:
    """As lm-eval lays them out: five of the training set, and tasks 2, 3 and 4 of MBPP."""
    task = load_task("gsm8k", path=str(shared / "data/gsm8k/test.jsonl"), prompt="5-shot")
    example = task.examples()[0]
    *shown, asked = str(task.prompt(example)).split("Question: ")[1:]
    train = [json.loads(line) for line in (shared / "data/gsm8k/train.jsonl").read_text().splitlines()[:5]]
    assert shown == [f"{row['question']}\nAnswer: {row['answer']}\n\n" for row in train]
    assert asked == f"{example['question']}\nAnswer:"
    gold = f" {example['answer']}"
    assert task.score(example, f"{gold}\n\nQuestion: And now?\nAnswer: #### 7").value == 1
    assert task.score(example, f" #### 7\n\nQuestion: And now?\nAnswer: {gold}").value == 0

    file = shared / "data/mbpp/mbpp.jsonl"
    task = load_task("mbpp", path=str(file), prompt="3-shot")
    rows = {row["task_id"]: row for row in map(json.loads, file.read_text().splitlines())}
    start = "You are an expert Python programmer, and here is your task: "
    *shown, asked = str(task.prompt(rows[11])).split(start)[1:]
    between = " Your code should pass these tests:\n\n{}\n{}\n{}\n[BEGIN]\n".format
    assert shown == [
        rows[i]["text"] + between(*rows[i]["test_list"]) + rows[i]["code"] + "\n[DONE]\n\n" for i in (2, 3, 4)
    ]
    assert asked == rows[11]["text"] + between(*rows[11]["test_list"])


def test_solved_examples_that_are_not_there(shared: Path, tmp_path: Path) -> None:
    for name, variant, message in (("gsm8k", "5-shot", "train.jsonl"), ("mbpp", "3-shot", "tasks 2, 3 and 4")):
        first = (shared / "data" / FILES[name]).read_text().splitlines()[-1]
        (tmp_path / "rows.jsonl").write_text(first + "\n")
        task = load_task(name, path=str(tmp_path / "rows.jsonl"), prompt=variant)
        with pytest.raises(DataError, match=message):
            task.prompt(task.examples()[0])


@needs_isolation
def test_code_ends_where_its_answer_does(shared: Path) -> None:
    task = load_task("mbpp", path=str(shared / "data/mbpp/mbpp.jsonl"), prompt="3-shot")
    example = task.examples()[0]
    more = "\n[DONE]\n\nYou are an expert\n[BEGIN]\ndef remove_Occ(s, ch):\n    return 7\n"
    assert task.score(example, example["code"] + more).value == 1


def test_the_last_turn_of_llada_s_mbpp_prompt(shared: Path) -> None:
    task = load_task("mbpp", path=str(shared / "data/mbpp/mbpp.jsonl"), prompt="llada")
    example = task.examples()[0]
    assert prompt_text(task.prompt(example)).endswith("\n".join(example["test_list"]) + "  \n")


def test_the_countdown_prompt_of_d1(shared: Path) -> None:
    task = load_task("countdown", path=str(shared / "data" / FILES["countdown"]), prompt="d1")
    asked = task.prompt(task.examples()[0])[0]
    assert isinstance(asked, dict) and asked["content"].endswith("</answer>\n\nNumbers: [30, 100, 93]\nTarget: 23")


def test_a_prompt_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match=r"no prompt 'd2'; there is default, d1, llada, 5-shot"):
        load_task("gsm8k", prompt="d2")
    assert variant_of(load_task("gsm8k")) == variant_of(load_task("arithmetic")) == "default"


def test_prompts_hold_the_problem(shared: Path) -> None:
    task = load("countdown", shared)
    assert "30, 100, 93, make an arithmetic expression that equals 23." in prompt_text(task.prompt(task.examples()[0]))
    task = load("sudoku", shared)
    example = task.examples()[1]
    assert example["Puzzle"].startswith("0")  # text, with its leading zero
    assert example["Puzzle"] in prompt_text(task.prompt(example))
    assert example["Solution"] not in prompt_text(task.prompt(example))
    task = load("gsm8k", shared)
    assert prompt_text(task.prompt(task.examples()[0])).startswith("Janet")


@pytest.mark.parametrize("name", ["gsm8k", "math500"])
def test_gold_completions_score_one(name: str, shared: Path) -> None:
    task = load(name, shared)
    for example in task.examples()[:20]:
        gold = example["answer"].rpartition("####")[2]
        assert task.score(example, f"<answer>{gold}</answer>").value == 1
        assert task.score(example, "<answer>no idea</answer>").value == 0


@needs_isolation
@pytest.mark.parametrize("name", CODE)
def test_gold_code_scores_one(name: str, shared: Path) -> None:
    task = load(name, shared)
    for example in task.examples()[:2]:
        gold = example["prompt"] + example["canonical_solution"] if name == "humaneval" else example["code"]
        assert task.score(example, f"```python\n{gold}\n```").value == 1
        assert task.score(example, "no idea").value == 0


def test_the_test_split_of_a_whole_release_and_any_other_file_as_it_is(shared: Path, tmp_path: Path) -> None:
    assert [row["task_id"] for row in load("mbpp", shared).examples()] == list(range(11, 511))
    (tmp_path / "own.jsonl").write_text('{"task_id": 3, "prompt": "Add.", "test_list": ["assert f(1) == 2"]}\n')
    task = load_task("mbpp", path=str(tmp_path / "own.jsonl"))
    assert len(task.examples()) == 1
    assert "Add. Your code" in prompt_text(task.prompt(task.examples()[0]))


def test_names_and_files() -> None:
    assert load_task("gsm8k").name == load_task("eval/gsm8k.py").name == "gsm8k"
    shipped = {load_task(file.stem).name for file in (shipped_root() / "eval").glob("*.py")}
    assert shipped == {*FILES, "arithmetic", "column_sum", "small_sudoku"}
    with pytest.raises(RecipeError, match=r"unknown task 'gsm'\. Shipped tasks: .*gsm8k, humaneval, math500, mbpp"):
        load_task("gsm")
    with pytest.raises(RecipeError, match=r"no file eval/none\.py"):
        load_task("eval/none.py")


def test_toy_arithmetic_makes_its_own_rows() -> None:
    task = load_task("arithmetic")
    examples = task.examples()
    assert len(examples) == 1000
    for example in examples[:50]:
        left, right = str(task.prompt(example)).rstrip("=").split("+")
        assert task.score(example, str(int(left) + int(right))).value == 1
        assert task.score(example, str(int(left) + int(right) + 1)).value == 0


def test_column_sums_are_judged_by_what_follows_the_marker() -> None:
    task = load_task("column_sum")
    examples = task.examples()
    assert len(examples) == 1000
    for example in examples[:50]:
        assert task.score(example, example["completion"]).value == 1
        assert task.score(example, f"99,99#{example['answer']}").value == 1
        assert task.score(example, f"{example['trace'][:-4]}{int(example['answer']) + 1}").value == 0
        assert task.score(example, example["answer"]).value == 0


def test_small_sudoku_is_right_or_wrong() -> None:
    task = load_task("small_sudoku")
    examples = task.examples()
    assert len(examples) == 1000
    for example in examples[:20]:
        assert task.prompt(example) == f"{example['puzzle']}="
        assert task.score(example, example["solution"]).value == 1
        assert task.score(example, example["solution"][:-1]).value == 0
        assert task.score(example, example["solution"][::-1]).value == float(
            example["solution"] == example["solution"][::-1]
        )


def test_sudoku_needs_rows() -> None:
    with pytest.raises(DataError, match="give a local file"):
        load_task("sudoku").examples()


def test_a_task_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Task:\n    name, version = 'mine', 2\n    def __init__(self, data): self.data = data\n"
    )
    assert load_task("mine.py", tmp_path).version == 2
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(RecipeError, match="no class Task"):
        load_task("empty.py", tmp_path)
