"""`generate --schema`: JSON on stdout, what does not fit on stderr, mistakes before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dllm_rl
from dllm_rl.cli import main
from dllm_rl.rollouts.generate_json import generate_json
from dllm_rl.rollouts.trace_file import read_trace
from dllm_rl.toys.bytes import byte_tokenizer
from dllm_rl.toys.model import tiny_llada
from tests.test_cli import jsonl, refusal

SCHEMA = {"type": "object", "properties": {"s": {"type": "string"}, "n": {"type": "integer"}, "c": {"const": 1}}}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tiny_llada(seed=3, tokenizer=byte_tokenizer(), max_positions=2048).save(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def schema(tmp_path: Path) -> str:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    return str(tmp_path / "schema.json")


def test_the_command_writes_what_the_library_writes(
    capsys: pytest.CaptureFixture[str], folder: str, schema: str, tmp_path: Path
) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "b"}]
    prompts = jsonl(tmp_path / "rows.jsonl", {"prompt": "a"}, {"prompt": messages})
    files = ["--trace", str(tmp_path / "trace.json"), "--html", str(tmp_path / "page.html")]
    flags = ["--value-tokens", "4", "--null-text", "_", "--steps", "4", "--temperature", "1", "--device", "cpu"]
    wanted = generate_json(
        dllm_rl.load_model(folder), ["a", messages], SCHEMA, value_tokens=4, null_text="_", steps=4, temperature=1.0
    )
    assert all(row.violations for row in wanted)
    capsys.readouterr()

    assert main(["generate", folder, "--prompts", str(prompts), "--schema", schema, *flags, *files]) == 1
    streams = capsys.readouterr()
    assert [json.loads(line) for line in streams.out.splitlines()] == [
        {"index": index, **row.record} for index, row in enumerate(wanted)
    ]
    told = [f"dllm-rl: row {index}, {one}" for index, row in enumerate(wanted) for one in row.violations]
    assert [line for line in streams.err.splitlines() if line.startswith("dllm-rl: row")] == told
    assert "no end of text" not in streams.err
    trace = read_trace(tmp_path / "trace.json")
    assert trace.trajectory().completions == [row.trajectory.completions[0] for row in wanted]
    assert trace.sampler.gen_length == trace.gen_length and (tmp_path / "page.html").is_file()


def test_a_driver_keeps_the_skeleton(capsys: pytest.CaptureFixture[str], folder: str, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{"type": "object", "properties": {"b": {"type": "string"}}}', encoding="utf-8")
    flags = [
        "--temperature",
        "1",
        "--driver",
        "best_of_n",
        "--driver-option",
        "n=2",
        "--trace",
        str(tmp_path / "t.json"),
    ]
    main(["generate", folder, "--prompt", "a", "--schema", str(tmp_path / "one.json"), "--device", "cpu", *flags])
    capsys.readouterr()
    rollout = read_trace(tmp_path / "t.json").trajectory()
    text = dllm_rl.load_model(folder).tokenizer.decode(rollout.completions[0])
    assert text.startswith('{"b": "') and int(rollout.given.sum()) > 8


def test_json_that_fits_ends_well(capsys: pytest.CaptureFixture[str], folder: str, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{"type": "array", "prefixItems": [{"const": 1}]}', encoding="utf-8")
    assert main(["generate", folder, "--prompt", "a", "--schema", str(tmp_path / "one.json"), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "[1]\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gen-length", "0"], "--gen-length: has no meaning with --schema"),
        (["--stop-at-eos"], "--stop-at-eos: has no meaning with --schema"),
        (["--value-tokens", "0"], "value_tokens is 0; expected at least 1"),
    ],
)
def test_settings_that_do_not_go_with_a_schema_are_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], schema: str, flags: list[str], message: str
) -> None:
    assert message in refusal(capsys, "generate", "no/model", "--prompt", "1", "--schema", schema, *flags)


def test_a_wrong_schema_is_refused_before_anything_is_loaded_or_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, trace = tmp_path / "wrong.json", tmp_path / "trace.json"
    file.write_text('{"type": "string", "pattern": "a"}', encoding="utf-8")
    command = ["generate", "no/model", "--prompt", "1", "--trace", trace, "--schema"]
    assert "schema at $: keyword 'pattern' is not supported" in refusal(capsys, *command, file)
    assert "cannot be read" in refusal(capsys, *command, tmp_path / "none.json")
    assert not trace.exists()
    for flag in ("--value-tokens", "--null-text"):
        assert f"{flag}: is about the values of a --schema" in refusal(capsys, *command[:4], flag, "5")
