from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import dllm_rl
from dllm_rl.cli import main
from dllm_rl.cli.generate import print_texts
from dllm_rl.rollouts.trace_file import read_trace
from dllm_rl.samplers.drivers import drive
from dllm_rl.samplers.drivers.best_of import BestOfN
from dllm_rl.samplers.presets.request import Request
from tests.rollouts.screens import Screen, shown

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = str(ROOT / "recipes/weights/arithmetic")
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


def test_generate_runs_a_driver(capsys: pytest.CaptureFixture[str], folder: str, tmp_path: Path) -> None:
    model = dllm_rl.load_model(folder)
    ids = model.tokenizer("1+1=", add_special_tokens=False)["input_ids"]
    request = Request(8, steps=4, temperature=0.7)
    out = drive(model, [ids], BestOfN(n=3), request, seed=3)
    ends = [place for place, token in enumerate(out.trajectory.completions[0]) if token in model.spec.eos_ids]
    text = model.tokenizer.decode(out.trajectory.completions[0][: min(ends, default=8)], skip_special_tokens=True)
    capsys.readouterr()
    flags = ["--raw", "--temperature", "0.7", "--seed", "3", "--driver", "best_of_n", "--driver-option", "n=3"]
    trace = tmp_path / "trace.json"
    assert main(["generate", folder, "--prompt", "1+1=", *SHORT, *flags, "--trace", str(trace)]) == 0
    printed = capsys.readouterr()
    assert printed.out == text + "\n"
    assert "8 tokens written in 12 forwards" in printed.err
    content = json.loads(trace.read_text(encoding="utf-8"))
    assert content["sampler"]["driver"] == "best_of_n n=3" and content["exactness"] == "none"


def test_generate_refuses_what_a_driver_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    """Before a model is looked for."""
    asked = ("generate", "no/model", "--prompt", "1")
    assert "did you mean 'smc'?" in refusal(capsys, *asked, "--driver", "smcs")
    assert "no option 'nn'" in refusal(capsys, *asked, "--driver", "mcts", "--driver-option", "nn=3")
    assert "there is no --driver to take it" in refusal(capsys, *asked, "--driver-option", "n=3")


def test_generate_refuses_what_the_preset_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    """Before a model is looked for."""
    sampler = refusal(capsys, "generate", "no/model", "--prompt", "1", "--sampler", "lada")
    assert "no sampler is called 'lada'; did you mean 'llada'?" in sampler
    option = refusal(capsys, "generate", "no/model", "--prompt", "1", "--option", "remaskin=random")
    assert "no option 'remaskin'; did you mean 'remasking'?" in option
    assert "expected key=value" in refusal(capsys, "generate", "no/model", "--prompt", "1", "--option", "remasking")


def test_generate_refuses_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = refusal(capsys, "generate", tmp_path / "none", "--prompt", "1")
    assert f"there is no folder {tmp_path / 'none'}" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "one of the arguments --prompt --prompt-file --prompts is required"),
        (["--prompt", "1", "--prompts", "x.jsonl"], "--prompts: not allowed with argument --prompt"),
    ],
)
def test_generate_takes_its_prompts_from_one_place(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["generate", "no/model", *flags])
    assert left.value.code == 2 and message in capsys.readouterr().err


def jsonl(file: Path, *rows: object) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_generate_refuses_a_file_without_prompts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", {"prompt": "1"}, {"question": "2", "answer": 3})
    wrong = refusal(capsys, "generate", "no/model", "--prompts", rows)
    assert f"--prompts {rows}: row 1 has question, answer; expected a prompt that is not empty" in wrong
    assert "row 0 has prompt" in refusal(capsys, "generate", "no/model", "--prompts", jsonl(rows, {"prompt": ""}))
    for prompt in (3, ["1"], [{"role": "user"}], {"role": "user", "content": "1"}):
        wrong = refusal(capsys, "generate", "no/model", "--prompts", jsonl(rows, {"prompt": prompt}))
        assert f"row 0: prompt is {prompt}; expected text, or messages with role and content" in wrong
    assert "no file" in refusal(capsys, "generate", "no/model", "--prompts", tmp_path / "none.jsonl")


@pytest.mark.parametrize("flag", ["--trace", "--html"])
def test_generate_finds_out_first_whether_it_can_write(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str
) -> None:
    assert f"{flag} {tmp_path}: cannot be written" in refusal(
        capsys, "generate", "no/model", "--prompt", "1", flag, tmp_path
    )


def test_without_a_terminal_the_text_is_all_there_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["generate", WEIGHTS, "--prompt", "123+459=", "--gen-length", "6", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out == "0572\n"
    facts = r"dllm-rl: 6 tokens written in 6 forwards, 1.00 tokens per forward, \d+\.\d s"
    assert re.fullmatch(facts, err.strip().split("\n")[-1])


def test_completions_of_a_file_are_lines_that_eval_scores(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "123+459="}]
    rows = jsonl(tmp_path / "rows.jsonl", {"prompt": "1+2="}, {"prompt": chat}, {"prompt": "700+81="})
    command = ["generate", WEIGHTS, "--prompts", str(rows), "--gen-length", "6", "--device", "cpu"]
    assert main([*command, "--batch-size", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert [line["prompt"] for line in lines] == ["1+2=", "123+459=", "700+81="]
    assert lines[1]["completion"] == "0572" and lines[1]["finished"] and lines[1]["forwards"] == 6
    assert main(command) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines
    gold = jsonl(tmp_path / "gold.jsonl", *({"question": "", "answer": f"#### {n}"} for n in (0, 572, 0)))
    (tmp_path / "written.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    score = ["eval", "--score", str(tmp_path / "written.jsonl"), "--tasks", "gsm8k", "--data", f"gsm8k={gold}"]
    assert main(score) == 0 and "(n 3)" in capsys.readouterr().out


def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """From here on standard output is a terminal of 100 columns without colours."""
    for name, value in {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "100", "LINES": "30"}.items():
        monkeypatch.setenv(name, value)
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    return screen


def test_on_a_terminal_the_canvas_is_drawn_and_its_last_state_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    assert main(["generate", WEIGHTS, "--prompt", "123+459=", "--gen-length", "6", "--device", "cpu"]) == 0
    prompt, canvas, status, text, rest = shown(screen.getvalue())
    assert (prompt, canvas, text, rest) == ("123+459=", "0572∎0", "0572", "")
    assert re.fullmatch(r"step 6 · 6/6 tokens · 1.00 tokens/forward · \d+\.\d s · 6 forwards +p 0 ▆{6} 1", status)
    frame, *_ = screen.getvalue().split("\x1b[J")
    assert shown(frame)[1] == "······" and screen.getvalue().endswith("\x1b[?25h0572\n")


def test_on_a_terminal_several_prompts_leave_their_texts_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    screen = terminal(monkeypatch)
    rows = jsonl(tmp_path / "rows.jsonl", {"prompt": "123+459="}, {"prompt": "700+81="})
    assert main(["generate", WEIGHTS, "--prompts", str(rows), "--gen-length", "6", "--device", "cpu"]) == 0
    assert shown(screen.getvalue()) == ["--- 0: 123+459=", "0572", "--- 1: 700+81=", "07513", ""]
    frame, *_ = screen.getvalue().split("\x1b[J")
    assert shown(frame)[:2] == ["0 ······", "1 ······"]


def test_nothing_a_model_writes_steers_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    trouble = {"prompt": "p\x1b[2J", "completion": "a\x1b]0;title\x07\n\tb"}
    print_texts([trouble], as_lines=True, terminal=True)
    assert screen.getvalue() == "--- 0: p<1B>[2J\na<1B>]0;title<07>\n\tb\n"


def test_a_trace_replays_what_was_generated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", {"prompt": "1+2="}, {"prompt": "123+459="})
    flags = ["--gen-length", "6", "--block-length", "3", "--temperature", "1", "--seed", "5", "--device", "cpu"]
    files = ["--trace", str(tmp_path / "new/trace.json"), "--html", str(tmp_path / "new/page.html")]
    assert main(["generate", WEIGHTS, "--prompts", str(rows), *flags, *files, "--option", "remasking=random"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    trace = read_trace(tmp_path / "new/trace.json")
    model = dllm_rl.load_model(WEIGHTS)
    ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("1+2=", "123+459=")]
    settings = {"gen_length": 6, "block_length": 3, "temperature": 1.0, "seed": 5, "remasking": "random"}
    out = dllm_rl.generate(model, ids, **settings)
    back = trace.trajectory()
    assert back.completions == out.completions and back.prompts == ids and back.nfe == out.nfe
    torch.testing.assert_close(back.behaviour_logp, out.behaviour_logp, rtol=0, atol=1e-4)
    assert trace.model == WEIGHTS and trace.seed == 5 and trace.sampler.options == {"remasking": "random"}
    assert [row.blocks for row in trace.rows] == [[3, 3], [3, 3]]
    assert [row.completion for row in trace.rows] == [line["completion"] for line in lines]
    for row, line in zip(out.completions, lines, strict=True):
        whole = "".join(trace.texts[str(token)] for token in row)
        assert whole.split("<|endoftext|>")[0] == line["completion"]

    again = tmp_path / "again/page.html"
    assert main(["replay", str(tmp_path / "new/trace.json"), "-o", str(again)]) == 0
    assert capsys.readouterr().out == f"{again}: 2 rows of 6 tokens, to be opened in a browser\n"
    assert again.read_text(encoding="utf-8") == (tmp_path / "new/page.html").read_text(encoding="utf-8")


def test_replay_tells_a_mistake_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert "no trace" in refusal(capsys, "replay", tmp_path / "none.json", "-o", out)
    (tmp_path / "rows.json").write_text("[1]", encoding="utf-8")
    assert "not a trace" in refusal(capsys, "replay", tmp_path / "rows.json", "-o", out)
    assert not out.exists()


def test_eval_answers_and_its_records_score_the_same(
    capsys: pytest.CaptureFixture[str], folder: str, gsm8k: Path, tmp_path: Path
) -> None:
    out, again = tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    source = ["--tasks", "gsm8k", "--data", f"gsm8k={gsm8k}"]
    assert main(["eval", folder, *source, "--limit", "3", "--out", str(out), *SHORT]) == 0
    first, interval, forwards, protocol = capsys.readouterr().out.splitlines()
    assert first.startswith("gsm8k: accuracy ") and first.endswith("(n 3)")
    assert forwards.startswith("  4.0 forwards an answer, 2.00 tokens per forward")
    assert protocol.startswith("  gsm8k v2, prompt default, 3 examples") and f"{folder} @ " in protocol
    assert [json.loads(line)["index"] for line in out.read_text(encoding="utf-8").splitlines()] == [0, 1, 2]
    assert main(["eval", "--score", str(out), *source, "--out", str(again)]) == 0
    assert capsys.readouterr().out.splitlines() == [first, interval]
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
    assert capsys.readouterr().out.splitlines() == [
        "gsm8k: accuracy 0.7500 +- 0.2500 (n 4)",
        "  95% interval 0.3006 to 0.9544",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "gsm8k"], "give a model that answers, or --score FILE"),
        (["m", "--tasks", "gsm8k", "--score", "x"], "one of the two"),
        (["m", "--tasks", "gsm8k", "--data", "math500=x"], "--data math500: not among --tasks gsm8k"),
        (["m", "--tasks", "gsm8k,math500", "--out", "x.jsonl"], "takes the records of one task"),
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
    (tmp_path / "records.jsonl").mkdir()
    for out in (tmp_path / "file", tmp_path / "file" / "records.jsonl", tmp_path / "records.jsonl"):
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
    assert "row 1, an empty completion: 0 (gsm8k.correctness 0, " in capsys.readouterr().out
    (tmp_path / "mine.py").write_text("def f(completions, solution, **columns):\n    return [0.0] * len(completions)\n")
    mine = f"reward={tmp_path}/mine.py:f"
    assert main(["check", str(recipe), f"data.path={gsm8k}", mine]) == 2
    assert "'solution'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "check", "show", "cite"])
def test_a_wrong_recipe_is_told_by_every_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    message = refusal(capsys, command, ROOT / "recipes/vrpo.yaml", "algorithm.num_drawz=1")
    assert "algorithm.num_drawz: unknown key. Did you mean num_draws?" in message
