"""The protocol names all that a result depends on; a revision changes with the weights."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from dllm_rl.errors import CheckpointError
from dllm_rl.evaluation.protocol import EvalProtocol, digest_of, protocol_of
from dllm_rl.evaluation.revision import revision_of
from dllm_rl.evaluation.task import Questions, load_task
from dllm_rl.models import DiffusionModel
from dllm_rl.rollouts.engine import RolloutSettings
from dllm_rl.toys.model import tiny_llada

OTHER = {
    "task": "math500",
    "task_version": 99,
    "prompt": "d1",
    "num_examples": 3,
    "data": "0123",
    "samples": 8,
    "model": "other",
    "revision": "abcd",
    "dtype": "bfloat16",
    "sampler": "fast",
    "gen_length": 64,
    "steps": 32,
    "block_length": 16,
    "temperature": 0.5,
    "cfg_scale": 1.5,
    "top_p": 0.9,
    "top_k": 50,
    "stop_at_eos": True,
    "cache": "prefix",
    "options": {"threshold": 0.9},
    "seed": 7,
}


def protocol(**changes: object) -> EvalProtocol:
    made = protocol_of(
        Questions(load_task("gsm8k"), [{"question": "1+1?", "answer": "#### 2"}], ["1+1?"]),
        samples=1,
        model="model",
        revision="1234",
        dtype="float32",
        settings=RolloutSettings(sampler="llada", gen_length=128, temperature=0.0),
        seed=0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_every_part_is_in_the_line_and_among_the_differences() -> None:
    assert {field.name for field in fields(EvalProtocol)} == set(OTHER)
    plain = protocol()
    for name, value in OTHER.items():
        other = protocol(**{name: value})
        assert other.line() != plain.line(), name
        expected = [] if name == "model" else [f"{name} is {value!r} there, {getattr(plain, name)!r} here"]
        assert plain.differences(other) == expected


def test_the_line_of_a_plain_greedy_evaluation() -> None:
    assert protocol(data="d00d").line() == (
        "gsm8k v2, prompt default, 1 examples (d00d) | model @ 1234, float32 | sampler llada, length 128, steps 128, "
        "block 128, temperature 0, seed 0 | whole canvas, text up to the first end of text"
    )


def test_the_digest_knows_values_and_order_but_not_the_order_of_columns() -> None:
    a, b = {"question": "1", "answer": "2"}, {"question": "3", "answer": "4"}
    digests = [digest_of(rows) for rows in ([a, b], [b, a], [a], [a, {**b, "answer": "5"}])]
    assert len(set(digests)) == 4
    assert digest_of([{"answer": "2", "question": "1"}, b]) == digests[0]


def test_a_revision_is_of_the_weights_and_not_of_the_place(tiny: DiffusionModel, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tiny_llada(seed=seed).save(tmp_path / name)
    (tmp_path / "b" / "README.md").write_text("about it")
    assert revision_of(tmp_path / "a") == revision_of(tmp_path / "b") != revision_of(tmp_path / "c")


def test_a_large_file_is_told_by_pieces_of_it(tmp_path: Path) -> None:
    size = 8 << 20
    (tmp_path / "model.safetensors").write_bytes(bytes(size))
    before = revision_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(bytes(size - 1) + b"\1")
    assert revision_of(tmp_path) != before
    (tmp_path / "model.safetensors").write_bytes(bytes(size + 1))
    assert revision_of(tmp_path) != before


def test_an_adapter_is_named_with_its_base(tiny: DiffusionModel, tmp_path: Path) -> None:
    from dllm_rl.models.load import load_model

    tiny.save(tmp_path / "base")
    load_model(tmp_path / "base", lora={"r": 2, "target_modules": "all-linear"}).save(tmp_path / "adapter")
    own, plus, base = revision_of(tmp_path / "adapter").partition("+")
    assert own and plus and base == revision_of(tmp_path / "base")


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(CheckpointError, match="there is no folder /no/model"):
        revision_of("/no/model")
