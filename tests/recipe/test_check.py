"""What `check` finds without a model: missing folders and files, rewards that do not fit the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dllm_rl.errors import DllmRlError, RecipeError
from dllm_rl.recipe.check import check
from dllm_rl.recipe.gold import gold_forms
from dllm_rl.recipe.load import load_recipe
from dllm_rl.rollouts.rewards import load_reward

ROOT = Path(__file__).resolve().parents[2]


def _check(folder: Path, *overrides: str) -> list[str]:
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "1+1=", "answer": "2"}))
    base: list[Any] = [f"data.path={folder / 'rows.jsonl'}", "eval=null"]
    return list(check(load_recipe(ROOT / "recipes/quickstart.yaml", [*base, *overrides]), ROOT / "recipes"))


def test_what_is_in_order_is_told(tmp_path: Path) -> None:
    columns, *lines = _check(tmp_path)
    assert columns.endswith("rows.jsonl has the columns prompt, answer")
    assert lines == [
        "reward: arithmetic.correctness",
        "reward: row 0, an empty completion: 0 (arithmetic.correctness 0)",
        "reward: row 0, its own answer '2': 1 (arithmetic.correctness 1)",
    ]


PICKY = """
def even(completions, answer, **columns):
    return [float(gold == text and int(gold) % 2 == 0) for text, gold in zip(completions, answer)]
def tagged(completions, **columns):
    return [0.5 if "<answer>" in text else None for text in completions]
def absent(completions, **columns):
    return [None] * len(completions)
def late(completions, forwards, gen_length, **columns):
    return [-float(all(pair == (5, 5) for pair in zip(forwards, gen_length)))] * len(completions)
"""


def test_rows_whose_own_answer_is_worth_nothing_are_named(tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(PICKY)
    file = tmp_path / "gold.jsonl"
    file.write_text("\n".join(json.dumps({"question": f"{i}?", "answer": str(i)}) for i in range(4)))
    functions = ", ".join(f"{tmp_path}/picky.py:{name}" for name in ("even", "tagged", "absent", "late"))
    lines = _check(
        tmp_path,
        f"data.path={file}",
        "data.prompt='{question}'",
        f"reward={{functions: [{functions}], weights: [1, 1, 1, 0]}}",
    )
    out = "does not apply"
    assert lines[1:] == [
        "reward: picky.even, picky.tagged, picky.absent, picky.late",
        f"reward: row 0, an empty completion: 0 (picky.even 0, picky.tagged {out}, picky.absent {out}, picky.late -1)",
        f"reward: row 1, an empty completion: 0 (picky.even 0, picky.tagged {out}, picky.absent {out}, picky.late -1)",
        f"reward: row 0, its own answer '0': 1 (picky.even 1, picky.tagged {out}, picky.absent {out}, picky.late -1)",
        r"reward: row 1, its own answer '<reasoning>\n1\n</reasoning>\n<answer>\n1\n</answer>': 0.5 "
        f"(picky.even 0, picky.tagged 0.5, picky.absent {out}, picky.late -1)",
        "reward: picky.even gives the own answers of 2 of 4 rows 0 or less: rows 1, 3",
        "reward: picky.late gives no own answer of 4 rows more than 0",
    ]


def test_own_answers_are_tried_as_the_layouts_want_them() -> None:
    assert gold_forms({"Solution": r"So \boxed{\frac{1}{2}}.", "answer": None, "level": 3}) == [
        r"So \boxed{\frac{1}{2}}.",
        "<reasoning>\nSo \\boxed{\\frac{1}{2}}.\n</reasoning>\n<answer>\n\\frac{1}{2}\n</answer>",
        r"\boxed{\frac{1}{2}}",
    ]
    assert gold_forms({"answer": "1 + 1\n#### 2"})[2] == r"\boxed{2}"
    assert gold_forms({"numbers": [1, 2], "target": 3, "answer": " "}) == []


def test_rows_without_an_answer_and_data_out_of_reach_are_told(tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": "1+1=", "numbers": [1, 2], "target": 3}))
    *_, last = _check(tmp_path, f"data.path={tmp_path}/asked.jsonl", "reward=rewards/countdown.py:correctness")
    assert last.startswith("reward: no column holds a gold answer; looked for completion, solution, answer")
    assert _check(tmp_path, "data.path=openai/gsm8k")[-1].startswith(
        "reward: not tried, since openai/gsm8k is no local"
    )


@pytest.mark.parametrize("key", ["reference_column", "answer_column"])
def test_columns_that_hints_need_are_looked_for(tmp_path: Path, key: str) -> None:
    columns = {"reference_column": "answer", "answer_column": "answer"}
    igpo = f"algorithm={{type: igpo, hints: {json.dumps(columns)}}}"
    assert _check(tmp_path, igpo)
    with pytest.raises(DllmRlError, match=rf"^algorithm\.hints\.{key}: 'trace' is no column of .*prompt, answer"):
        _check(tmp_path, igpo, f"algorithm.hints.{key}=trace")


def test_a_model_that_is_looked_for_elsewhere_is_told(tmp_path: Path) -> None:
    first, *_ = _check(tmp_path, "model.path=runs/planner")
    assert first == "model: runs/planner is no folder here, so it is looked for on the hub"


def test_options_of_samplers_are_tried(tmp_path: Path) -> None:
    with pytest.raises(DllmRlError, match=r"^rollout\.options: sampler 'rl' has no option 'sigma'"):
        _check(tmp_path, "rollout.options={sigma: 1}")


def test_shaping_is_tried_too(tmp_path: Path) -> None:
    shaped = "reward={{functions: [rewards/{}], speed_exponent: 1}}".format
    right = shaped("arithmetic.py:correctness")
    assert _check(tmp_path, right, "rollout.steps=1")[-1].endswith("'2': 1 (arithmetic.correctness 1)")
    assert _check(tmp_path, right)[-1].endswith("'2': 0.2 (arithmetic.correctness 1)")
    with pytest.raises(DllmRlError, match="add speed, as rewards/speed.py"):
        _check(tmp_path, shaped("speed.py:fewer_forwards"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=/nowhere", "there is no folder /nowhere"),
        ("model.path=runs/a/b", "there is no folder runs/a/b"),
        ("data.path=missing.jsonl", "no file missing.jsonl"),
        ("reward=rewards/arithmetic.py:corectness", "corectness"),
        ("reward=rewards/gsm8k.py:nothing", "nothing"),
        ("data.prompt='{question}'", "data.prompt: cannot be filled .*the rows have prompt, answer"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(DllmRlError, match=message):
        _check(tmp_path, override)


def test_a_server_that_is_not_named_is_told_and_stops_a_run_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DLLM_RL_TEACHER_URL", raising=False)
    (tmp_path / "teacher.py").write_text((ROOT / "rewards/teacher.py").read_text())
    _, *lines = _check(tmp_path, f"reward={tmp_path / 'teacher.py'}:log_likelihood")
    assert lines == [
        f"reward: not tried, and a run would stop here: {tmp_path / 'teacher.py'}: DLLM_RL_TEACHER_URL is not set; "
        "expected the teacher's address, like http://localhost:8000/v1"
    ]
    with pytest.raises(RecipeError, match="teacher.py: DLLM_RL_TEACHER_URL is not set"):
        load_reward(f"{tmp_path / 'teacher.py'}:log_likelihood")


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_passes(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLLM_RL_TEACHER_URL", raising=False)
    found = load_recipe(recipe, [])
    lines = list(check(found, recipe.parent))
    assert not found.reward or any(line.startswith("reward: ") for line in lines)
    assert all("\n" not in line for line in lines)
    if found.eval is not None:
        assert lines[-1].startswith("eval: "), "to the end"


@pytest.mark.parametrize("name", ["cj_grpo", "mdpo", "co_grpo", "dultra", "igpo"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.cache=dual", "rollout.cache: not set here: through an approximate cache"),
        ("rollout.options.cache=dual", "has no option 'cache'"),
    ],
)
def test_what_is_learned_from_is_never_sampled_through_a_cache(name: str, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        list(check(load_recipe(ROOT / f"recipes/{name}.yaml", [override]), ROOT / "recipes"))
