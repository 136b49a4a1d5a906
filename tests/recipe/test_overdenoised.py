"""``dllm-rl overdenoised`` on the quickstart's model: the rows it finds are those that the library says they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dllm_rl
from dllm_rl.cli import main
from dllm_rl.recipe.load import load_recipe
from dllm_rl.recipe.source import load_data, make_source, raw_rows
from dllm_rl.rollouts.engine import LocalEngine
from dllm_rl.rollouts.text import decode_until_eos
from dllm_rl.training.source import RolloutSource

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "recipes/quickstart.yaml")
FEW = "data.options={count: 150, digits: 3}"


def run(*argv: str | Path) -> int:
    return main(["overdenoised", *map(str, argv), "--device", "cpu"])


def test_the_rows_found_are_right_on_the_way_and_wrong_in_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    assert run(QUICKSTART, FEW, "rollout.sampler=rcr", "--limit", "120", "--batch-size", "50", "--out", out) == 0
    recipe = load_recipe(QUICKSTART, [FEW])
    model = dllm_rl.load_model(str(ROOT / "recipes/weights/arithmetic"))
    rows, decode = raw_rows(recipe, ROOT)[:120], decode_until_eos(model)
    prompts = [model.tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] for row in rows]
    found = dllm_rl.generate(model, prompts, sampler="rcr", gen_length=5, record_predictions=True)
    at_the_end = [decode(ids) == row["answer"] for ids, row in zip(found.completions, rows, strict=True)]
    on_the_way = [
        any(decode(ids) == row["answer"] for ids in steps)
        for steps, row in zip(found.predictions.tokens.tolist(), rows, strict=True)
    ]
    lost = [row for row, end, way in zip(rows, at_the_end, on_the_way, strict=True) if way and not end]
    assert lost and sum(at_the_end) > 5
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == lost
    told = (
        f"120 rows: {sum(at_the_end)} right at the end, {sum(on_the_way)} right at some step, {len(lost)} of these "
        f"wrong at the end, written to {out}"
    )
    streams = capsys.readouterr()
    assert streams.out.strip() == told and "50 rows: " in streams.err
    again = load_recipe(QUICKSTART, [f"data.path={out}", "data.options={}"])
    assert [row.columns["answer"] for row in load_data(again, ROOT, model)] == [row["answer"] for row in lost]


def test_what_counts_as_right_can_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    for right, told in (("1.5", "0 right at the end, 0 right at some step"), ("0", "9 right at the end, 9 right at")):
        assert run(QUICKSTART, FEW, "--limit", "9", "--right", right, "--out", out) == 0
        assert f"9 rows: {told}" in capsys.readouterr().out and out.read_text() == ""


@pytest.mark.parametrize("algorithm", ["mdpo", "cj_grpo"])
def test_rollouts_keep_their_predictions_for_methods_that_judge_them(algorithm: str) -> None:
    recipe = load_recipe(QUICKSTART, [f"algorithm={{type: {algorithm}}}", FEW])
    model = dllm_rl.load_model(str(ROOT / "recipes/weights/arithmetic"))
    source = make_source(recipe, ROOT, load_data(recipe, ROOT, model), model, 0, model.device)
    assert isinstance(source, RolloutSource) and isinstance(source.engine, LocalEngine)
    assert source.engine.sampler.record_predictions == (algorithm == "mdpo")


def test_rows_are_written_as_the_data_have_them_though_some_are_left_out(tmp_path: Path) -> None:
    """Before `data.map`, and not shifted by rows that are too long. Here every answer is right, none in the end."""
    data, out, user = tmp_path / "data.jsonl", tmp_path / "rows.jsonl", tmp_path / "mine.py"
    rows = [{"q": "1+2=" * (9 if i == 1 else 1), "note": {"é": [i, None]}} for i in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    user.write_text(
        "def change(row):\n    return {'prompt': row['q'], 'place': row['note']['é'][0]}\n"
        "def early(completions, completion_ids, place, **columns):\n"
        "    first = {}\n"
        "    return [1.0 if first.setdefault(p, i) == i and p != 2 else 0.0 for i, p in enumerate(place)]\n",
        encoding="utf-8",
    )
    overrides = [f"data.path={data}", "data.options={}", f"data.map={user}:change", f"reward={user}:early"]
    overrides += ["data.max_prompt_length=10", "data.overlong=drop", "rollout.sampler=rcr"]
    assert run(QUICKSTART, *overrides, "--out", out) == 0
    kept = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert kept and all(row in rows for row in kept)
    assert {row["note"]["é"][0] for row in kept} <= {0, 3}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([QUICKSTART, "--out", "rows.csv"], "--out rows.csv: holds one row a line; give a name that ends in .jsonl"),
        ([QUICKSTART, "--out", "r.jsonl", "--batch-size", "0"], "--batch-size 0: expected at least 1"),
        ([QUICKSTART, "--out", "r.jsonl", "--limit", "0"], "data.limit"),
        ([str(ROOT / "recipes/tiny_sft.yaml"), "--out", "r.jsonl"], "sft learns from text; give a recipe with"),
        ([QUICKSTART, "model.path=no/such/folder", FEW, "--out", "r.jsonl"], "no/such/folder"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_older_rows_stay(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.jsonl").write_text("older\n")
    assert run(*argv) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("dllm-rl: ") and message in line
    assert (tmp_path / "r.jsonl").read_text() == "older\n"


def test_rows_that_are_no_json_are_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import datetime

    import pyarrow as pa
    import pyarrow.parquet

    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table({"prompt": ["1+1="], "day": [datetime.date(2026, 1, 1)]}), file)
    overrides = [f"data.path={file}", "data.options={}", "model.path=no/such/folder"]
    assert run(QUICKSTART, *overrides, "--out", tmp_path / "out.jsonl") == 2
    assert "row 0: cannot be written as JSON" in capsys.readouterr().err
