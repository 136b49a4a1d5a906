from __future__ import annotations

import json
from pathlib import Path

import pytest

import dllm_rl
from dllm_rl.cli import main

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["--gen-length", "8", "--steps", "4", "--device", "cpu"]


@pytest.fixture
def folder(tiny: dllm_rl.DiffusionModel, tmp_path: Path) -> str:
    tiny.save(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    rows = [{"question": f"what is {n} + 1?", "answer": f"so\n#### {n + 1}"} for n in range(4)]
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def refusal(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The one line a mistake is told in; progress bars of loading may come before it."""
    capsys.readouterr()
    assert main([*map(str, argv)]) == 2
    streams = capsys.readouterr()
    *bars, line = streams.err.strip().split("\n")
    assert streams.out == "" and line.startswith("dllm-rl: ") and all("it/s]" in bar for bar in bars)
    return line


@pytest.mark.parametrize("blank", ["", " \n"])
def test_an_empty_prompt_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, blank: str
) -> None:
    assert "--prompt: the prompt is empty" in refusal(capsys, "generate", "no/model", "--prompt", blank)
    (tmp_path / "prompt.txt").write_text(blank, encoding="utf-8")
    assert "prompt is empty" in refusal(capsys, "generate", "no/model", "--prompt-file", tmp_path / "prompt.txt")
    assert "no file" in refusal(capsys, "generate", "no/model", "--prompt-file", tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    assert "as UTF-8 text" in refusal(capsys, "generate", "no/model", "--prompt-file", tmp_path / "latin.txt")


def test_generate_prints_what_the_library_generates(
    capsys: pytest.CaptureFixture[str], folder: str, tmp_path: Path
) -> None:
    model = dllm_rl.load_model(folder)
    ids = model.tokenizer("1+1=", add_special_tokens=False)["input_ids"]
    out = dllm_rl.generate(model, [ids], gen_length=8, steps=4, temperature=0.7, seed=3, remasking="random")
    ends = [place for place, token in enumerate(out.completions[0]) if token in model.spec.eos_ids]
    text = model.tokenizer.decode(out.completions[0][: min(ends, default=8)], skip_special_tokens=True)

    (tmp_path / "prompt.txt").write_text("1+1=", encoding="utf-8")
    capsys.readouterr()
    for prompt in (["--prompt", "1+1="], ["--prompt-file", str(tmp_path / "prompt.txt")]):
        flags = ["--raw", "--temperature", "0.7", "--seed", "3", "--option", "remasking=random"]
        assert main(["generate", folder, *prompt, *SHORT, *flags]) == 0
        assert capsys.readouterr().out == text + "\n"


def test_generate_refuses_what_the_preset_does_not_know(capsys: pytest.CaptureFixture[str], folder: str) -> None:
    assert "lada" in refusal(capsys, "generate", folder, "--prompt", "1", *SHORT, "--sampler", "lada")
    assert "expected key=value" in refusal(capsys, "generate", folder, "--prompt", "1", *SHORT, "--option", "remasking")


def test_eval_answers_and_its_records_score_the_same(
    capsys: pytest.CaptureFixture[str], folder: str, gsm8k: Path, tmp_path: Path
) -> None:
    out, again = tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    source = ["--tasks", "gsm8k", "--data", f"gsm8k={gsm8k}"]
    assert main(["eval", folder, *source, "--limit", "3", "--out", str(out), *SHORT]) == 0
    first = capsys.readouterr().out
    assert first.startswith("gsm8k: accuracy ") and first.endswith("(n 3)\n")
    assert [json.loads(line)["index"] for line in out.read_text(encoding="utf-8").splitlines()] == [0, 1, 2]
    assert main(["eval", "--score", str(out), *source, "--out", str(again)]) == 0
    assert capsys.readouterr().out == first
    scores = [
        [json.loads(line)["score"] for line in file.read_text(encoding="utf-8").splitlines()] for file in (out, again)
    ]
    assert scores[0] == scores[1]


def test_eval_scores_completions_by_hand(capsys: pytest.CaptureFixture[str], gsm8k: Path, tmp_path: Path) -> None:
    written = ["<answer>1</answer>", "<answer>7</answer>", "<answer>3</answer>", "<answer>4</answer>"]
    file = tmp_path / "written.jsonl"
    lines = [json.dumps({"index": index, "completion": text}) + "\n" for index, text in enumerate(written)]
    file.write_text("".join(lines), encoding="utf-8")
    assert main(["eval", "--score", str(file), "--tasks", "gsm8k", "--data", f"gsm8k={gsm8k}"]) == 0
    assert capsys.readouterr().out == "gsm8k: accuracy 0.7500 +- 0.2500 (n 4)\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "gsm8k"], "give a model that answers, or --score FILE"),
        (["m", "--tasks", "gsm8k", "--score", "x"], "one of the two"),
        (["m", "--tasks", "gsm8k", "--data", "math500=x"], "--data math500: not among --tasks gsm8k"),
        (["m", "--tasks", "gsm8k,math500", "--out", "x"], "takes the records of one task"),
        (["--tasks", "gsm8k,math500", "--score", "x"], "holds completions of one task"),
        (["m", "--tasks", "gsm9k"], "gsm9k"),
    ],
)
def test_eval_refuses_what_does_not_fit(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert message in refusal(capsys, "eval", *flags)


def test_eval_finds_out_first_whether_its_records_can_be_written(
    capsys: pytest.CaptureFixture[str], folder: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file" / "records.jsonl"):
        assert "cannot be written" in refusal(capsys, "eval", "no/model", "--tasks", "gsm8k", "--out", out)


def test_eval_keeps_older_records_when_it_fails(
    capsys: pytest.CaptureFixture[str], folder: str, tmp_path: Path
) -> None:
    (tmp_path / "records.jsonl").write_text("older", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"quest": "?", "answer": "#### 1"}', encoding="utf-8")
    flags = ["--tasks", "gsm8k", "--data", f"gsm8k={tmp_path / 'rows.jsonl'}", "--out", tmp_path / "records.jsonl"]
    assert "example 0 has no column 'question'" in refusal(capsys, "eval", folder, *flags, *SHORT)
    assert (tmp_path / "records.jsonl").read_text(encoding="utf-8") == "older"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "nowhere"], "device is 'nowhere'"),
        (["--prompt", "1+é="], "no ids for the prompt '1+é='"),
    ],
)
def test_generate_tells_a_mistake_in_one_line(
    capsys: pytest.CaptureFixture[str], folder: str, flags: list[str], message: str
) -> None:
    prompt = [] if "--prompt" in flags else ["--prompt", "1+1="]
    assert message in refusal(capsys, "generate", folder, "--raw", *SHORT, *prompt, *flags)


def test_weights_that_do_not_fit_are_told_in_one_line(capsys: pytest.CaptureFixture[str], folder: str) -> None:
    config = Path(folder) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"n_layers": 9}))
    assert "missing" in refusal(capsys, "generate", folder, "--prompt", "1+1=")


def test_export_refuses_an_existing_folder(capsys: pytest.CaptureFixture[str], folder: str) -> None:
    assert "exists" in refusal(capsys, "export", folder, folder, "--official-names")


def test_cite_prints_the_papers_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", str(ROOT / "recipes/vrpo.yaml")]) == 0
    assert capsys.readouterr().out.startswith("@article{zhu2025llada15")


def test_check_tries_the_rewards_on_the_first_rows(
    capsys: pytest.CaptureFixture[str], gsm8k: Path, tmp_path: Path
) -> None:
    recipe = ROOT / "recipes/diffu_grpo.yaml"
    assert main(["check", str(recipe), f"data.path={gsm8k}"]) == 0
    assert "gsm8k.correctness [0.0, 0.0]" in capsys.readouterr().out
    (tmp_path / "mine.py").write_text("def f(completions, solution, **columns):\n    return [0.0] * len(completions)\n")
    mine = f"reward={tmp_path}/mine.py:f"
    assert main(["check", str(recipe), f"data.path={gsm8k}", mine]) == 2
    assert "'solution'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "check", "show", "cite"])
def test_a_wrong_recipe_is_told_by_every_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    message = refusal(capsys, command, ROOT / "recipes/vrpo.yaml", "algorithm.num_drawz=1")
    assert "algorithm.num_drawz: unknown key. Did you mean num_draws?" in message
