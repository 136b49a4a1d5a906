"""What a recipe says of hints is checked before anything is sampled, and its rows lose their answers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from dllm_rl.errors import DataError, RecipeError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.recipe.load import load_recipe
from dllm_rl.recipe.source import load_data
from dllm_rl.training.data import PromptRow

ROOT = Path(__file__).resolve().parents[2]


def recipe(path: str = "rows.jsonl", hints: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    return {
        "algorithm": {"type": "igpo", "hints": hints or {}},
        "model": {"path": "toy:llada"},
        "data": {"path": path},
        "reward": {"functions": ["a.py:x"]},
        "rollout": {"num_generations": 4, "gen_length": 8},
        "output": "runs/x",
        **sections,
    }


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            recipe(reward={"functions": ["a.py:x", "a.py:y"]}),
            "algorithm.hints.correct_reward is not given; expected one of a.py:x, a.py:y",
        ),
        (
            recipe(reward={"functions": ["a.py:x"], "speed_exponent": 0.5}),
            "reward.speed_exponent: hinted completions of igpo need fewer forwards, so they would be paid",
        ),
        (
            recipe(reward={"functions": ["a.py:x"], "normalization": "per_function"}),
            "reward.normalization: igpo judges more than one completion per rollout",
        ),
        (recipe(hints={"correct_reward": "a.py:z"}), "correct_reward is 'a.py:z'; expected one of a.py:x"),
        (recipe(hints={"replaced_share": 0.2}), "replaced_share is 0.2 of 4 generations, less than one completion"),
        (recipe(hints={"reference_colum": "x"}), "Did you mean reference_column?"),
        (
            recipe(data={"path": "x.jsonl", "max_completion_length": 8}),
            "data.max_completion_length: igpo writes its completions; rollout.gen_length says it",
        ),
        ({key: part for key, part in recipe().items() if key != "rollout"}, "igpo samples its data: add this section"),
    ],
)
def test_what_cannot_work_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tree)
    assert message in str(caught.value)


def test_rows_of_a_run_have_traces_without_answers(tiny: DiffusionModel, tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "trace": "1+1=2", "answer": "2"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (row,) = load_data(load_recipe(recipe(str(tmp_path / "rows.jsonl"))), tmp_path, tiny)
    assert isinstance(row, PromptRow) and row.trace is not None
    assert row.trace.shown == [True] * 4 + [False]
    plain = recipe(str(tmp_path / "rows.jsonl"), algorithm={"type": "diffu_grpo"})
    (row,) = load_data(load_recipe(plain), tmp_path, tiny)
    assert isinstance(row, PromptRow) and row.trace is None


def test_rows_mapped_to_none_are_left_out_and_counted(
    tiny: DiffusionModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"query": "q", "type": kind, "response": response}
        for kind, response in (
            ("GSM_AnsAug", "3*24=72.\nThe answer is: 72"),
            ("GSM_Rephrased", "The answer is: 72"),
            ("MATH_AnsAug", "no answer"),
        )
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {
        "path": str(tmp_path / "rows.jsonl"),
        "map": f"{ROOT / 'recipes/metamath.py'}:question_and_trace",
        "prompt": "{question}",
    }
    with caplog.at_level(logging.WARNING):
        (row,) = load_data(load_recipe(recipe(data=data)), tmp_path, tiny)
    assert "data.map left out 2 of 3 rows" in caplog.text
    assert isinstance(row, PromptRow) and row.trace is not None
    assert row.columns == {"question": "q", "trace": "<reasoning>\n3*24=72.", "answer": "72"}
    assert [shown for shown in row.trace.shown if not shown] == [False, False], "the answer's second place"
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[1]))
    with pytest.raises(DataError, match="data.map left out all 1 rows"):
        load_data(load_recipe(recipe(data=data)), tmp_path, tiny)


def test_openr1_rows_become_boxed_answers_between_tags() -> None:
    from dllm_rl.rollouts.functions import load_function

    made = load_function("openr1.py:solution_and_answer", ROOT / "recipes")(
        {"problem": "1+1?", "solution": "Count.", "answer": "2"}
    )
    assert made["question"] == "1+1?"
    assert made["completion"] == "<reasoning>\nCount.\n</reasoning>\n<answer>\n\\boxed{2}\n</answer>"
