"""JSON from prompts: nothing a model writes breaks the skeleton, and what does not fit is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from dllm_rl.errors import DataError, ModelContractError, RecipeError
from dllm_rl.models.policy_head import attach_head
from dllm_rl.rollouts.engine import RolloutSettings
from dllm_rl.rollouts.generate_json import complete_json, generate_json
from dllm_rl.rollouts.json_schema import compile_schema
from dllm_rl.rollouts.scaffold import Violation, instruction, scaffold_of
from dllm_rl.samplers.generate import generate
from dllm_rl.samplers.names import FEATURES, HEADS
from dllm_rl.samplers.presets import PRESETS
from dllm_rl.toys.families import tiny_llada2
from dllm_rl.toys.model import tiny_llada
from tests.rollouts.scaffolds import BYTES
from tests.samplers.needs import NEEDS


@pytest.fixture(scope="module")
def writer():
    return tiny_llada(seed=3, tokenizer=BYTES, max_positions=2048)


@pytest.fixture(scope="module")
def writers(writer):
    """By the head that a sampler asks."""
    kinds = {None: writer}
    for head in ({"type": "planner"}, {"type": "schedule", "features": len(FEATURES), "actions": 1}):
        kinds[head["type"]] = tiny_llada(seed=3, tokenizer=BYTES, max_positions=2048)
        attach_head(kinds[head["type"]].network, head)
    return kinds


SMALL = {
    "type": "object",
    "properties": {
        "s": {"type": "string"},
        "inner": {"type": "object", "properties": {"n": {"type": "number"}, "t": {"type": "string"}}},
        "e": {"enum": ["x", "yy"]},
    },
}


def segments(text, schema):
    """What stands between the known pieces of a text, found by its known pieces alone."""
    known = [piece for piece in compile_schema(schema) if isinstance(piece, str)]
    assert text.startswith(known[0]) and text.endswith(known[-1])
    value = json.loads(text)
    assert list(value) == ["s", "inner", "e"] and list(value["inner"]) == ["n", "t"]
    parts = [value["s"], value["inner"]["n"], value["inner"]["t"], value["e"]]
    assert text == "".join(
        known_piece + filling
        for known_piece, filling in zip(
            known,
            [
                json.dumps(parts[0], ensure_ascii=False)[1:-1],
                text[len(known[0]) :].partition(known[1])[2].partition(known[2])[0],
                json.dumps(parts[2], ensure_ascii=False)[1:-1],
                json.dumps(parts[3], ensure_ascii=False)[1:-1],
                "",
            ],
            strict=True,
        )
    )
    return parts


def short(model, sampler, temperature):
    """Two texts in about eight forwards; some samplers say themselves how many they take."""
    way = {"sampler": sampler, "temperature": temperature, "value_tokens": 3, "options": NEEDS.get(sampler, {})}
    try:
        return generate_json(model, ["a", "bb"], SMALL, instruct=False, chat=False, steps=4, **way)
    except RecipeError:
        return generate_json(model, ["a", "bb"], SMALL, instruct=False, chat=False, steps=None, **way)


@pytest.mark.parametrize("sampler", PRESETS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_random_weights_never_break_the_skeleton(writers, sampler, temperature):
    rows = short(writers[HEADS.get(sampler)], sampler, temperature)
    for row in rows:
        parts = segments(row.text, SMALL)
        assert isinstance(parts[0], str) and isinstance(parts[2], str)
        assert row.value == json.loads(row.text)
        assert {one.path for one in row.violations} >= {"$.e"}


def test_it_is_generate_with_a_template(writer):
    rows = generate_json(
        writer, ["hello", "a longer prompt"], SMALL, temperature=1.0, steps=4, seed=5, value_tokens=5, batch_size=1
    )
    again = generate_json(writer, ["hello", "a longer prompt"], SMALL, temperature=1.0, steps=4, seed=5, value_tokens=5)
    assert [row.text for row in rows] == [row.text for row in again]
    scaffold = scaffold_of(SMALL, BYTES, value_tokens=5)
    prompts = [
        BYTES.apply_chat_template(
            [{"role": "user", "content": f"{prompt}\n\n{instruction(SMALL)}\n"}], add_generation_prompt=True
        )["input_ids"]
        for prompt in ("hello", "a longer prompt")
    ]
    template = [*scaffold.template, BYTES.eos_token_id]
    out = generate(
        writer,
        prompts,
        sampler="llada",
        gen_length=len(template),
        temperature=1.0,
        steps=4,
        seed=5,
        fixed=[template] * 2,
    )
    assert [row.trajectory.completions[0] for row in rows] == out.completions
    assert [row.prompt for row in rows] == ["hello", "a longer prompt"]
    assert [row.forwards for row in rows] == [4, 4]
    for row, completion in zip(rows, out.completions, strict=True):
        reading = scaffold.read(completion)
        assert (row.text, row.value, row.violations) == (reading.text, reading.value, reading.violations)
        assert row.trajectory.given.sum() == len(template) - template.count(None)


def test_messages_are_prompts_and_are_told_what_to_write_at_their_end(writer):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    schema = {"type": "string", "x-tokens": 1}
    (row,) = generate_json(writer, [messages], schema)
    asked = [messages[0], {"role": "user", "content": f"hello\n\n{instruction(schema)}\n"}]
    ids = BYTES.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert row.trajectory.prompts == [ids] and row.prompt == "be brief\n\nhello"
    assert messages[1]["content"] == "hello"


@pytest.mark.parametrize("sampler", ["llada", "threshold", "rl"])
def test_no_sampler_and_no_model_needs_to_be_told_the_steps(writer, sampler):
    for model in (writer, tiny_llada2(seed=0, block_size=4, tokenizer=BYTES)):
        (row,) = generate_json(model, ["a"], SMALL, sampler=sampler, instruct=False, value_tokens=3)
        assert 1 <= row.forwards <= 12


def test_the_likelihood_is_that_of_the_values_alone(writer):
    schema = {"type": "array", "prefixItems": [{"type": "string", "x-tokens": 3}, {"type": "integer", "x-tokens": 2}]}
    for row in generate_json(writer, ["a", "longer"], schema, sampler="rl", temperature=0.7, steps=None):
        out, total = row.trajectory, 0.0
        start = out.prompt_length
        for step in range(out.nfe[0]):
            before, after = out.canvas(step), out.canvas(step + 1)
            where = before != after
            assert bool(where.any()) and not bool(where[:, :start].any())
            logits = writer.logits(before)[0].detach().double()
            logits[:, list(out.transform.forbidden_ids)] = -torch.inf
            for place in where[0].nonzero().flatten().tolist():
                total += float((logits[place] / 0.7).log_softmax(-1)[after[0, place]])
        assert out.exactness == "exact"
        assert float(out.behaviour_logp[0]) == pytest.approx(total, abs=1e-4)


def test_a_model_that_writes_what_is_asked_gives_it_back_checked():
    model = tiny_llada(seed=0, tokenizer=BYTES)
    with torch.no_grad():
        model.network.lm_head.weight.zero_()
    row = generate_json(model, ["a"], {"type": "object", "properties": {"k": {"const": 3}}})[0]
    assert (row.checked(), row.forwards, row.text) == ({"k": 3}, 0, '{"k": 3}')


def test_checked_names_every_field_that_does_not_fit(writer):
    (row,) = generate_json(writer, ["tell me"], SMALL, temperature=1.0, steps=8)
    with pytest.raises(
        DataError, match=r"'tell me' does not fit the schema: \$.inner.n: found .*; \$.e: found .*one of"
    ):
        row.checked()
    assert row.value["inner"]["n"] is None
    assert row.record["violations"] == [
        {"path": one.path, "found": one.found, "expected": one.expected} for one in row.violations
    ]
    assert all(isinstance(one, Violation) for one in row.violations)


def test_blocks_are_filled_up_with_the_end_of_sequence():
    schema = {"type": "object", "properties": {"s": {"type": "string", "x-tokens": 6}}}
    length = len('{"s": ""}') + 6
    causal = tiny_llada2(seed=0, block_size=4, tokenizer=BYTES)
    bidirectional = tiny_llada(seed=0, tokenizer=BYTES)
    for model, block_length, total in ((causal, None, 16), (bidirectional, 8, 16), (bidirectional, None, length + 1)):
        (row,) = generate_json(model, ["a"], schema, steps=None, block_length=block_length, instruct=False)
        completion = row.trajectory.completions[0]
        assert len(completion) == total
        assert completion[length:] == [BYTES.eos_token_id] * (total - length)
        assert row.forwards == 6
    model = tiny_llada(seed=0, tokenizer=BYTES)
    model.spec = model.spec.__class__(**{**vars_of(model.spec), "eos_ids": ()})
    (row,) = generate_json(model, ["a"], schema, instruct=False)
    assert len(row.trajectory.completions[0]) == length


def vars_of(spec):
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


def test_prompts_and_models_that_cannot_be_used_are_refused(tiny):
    tiny.tokenizer.chat_template = None
    with pytest.raises(ModelContractError, match="no chat template"):
        generate_json(tiny, ["a"], SMALL)
    for instruct in (True, False):
        with pytest.raises(DataError, match="prompt 1 is empty"):
            generate_json(tiny, ["a", " "], SMALL, chat=False, instruct=instruct)
    with pytest.raises(RecipeError, match="stop_at_eos is set"):
        complete_json(tiny, ["a"], SMALL, RolloutSettings(stop_at_eos=True), chat=False)
    with pytest.raises(DataError, match="no prompts"):
        generate_json(tiny, [], SMALL, chat=False)
    with pytest.raises(DataError, match=r"prompt 0 has .* tokens, which with gen_length .* the model has 512"):
        generate_json(tiny, ["a"], SMALL, chat=False, value_tokens=200)
    tiny.tokenizer = None
    with pytest.raises(ModelContractError, match="no tokenizer"):
        generate_json(tiny, ["a"], SMALL)


def test_the_example_of_the_documentation_runs(capsys):
    page = (Path(__file__).resolve().parents[2] / "docs/scaffold.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    exec(compile(example, "docs/scaffold.md", "exec"), {})
    printed = capsys.readouterr().out
    assert list(json.loads(printed.splitlines()[0])) == ["title", "year", "genre", "cast"]
    assert "$.genre" in printed
