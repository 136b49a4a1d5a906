"""lm-eval's requests against what our own functions give, and its tasks through the command line."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import dllm_rl
from dllm_rl.cli import main
from dllm_rl.evaluation import lm_eval as ours
from dllm_rl.evaluation import revision
from dllm_rl.evaluation.lm_eval import DiffusionLM
from dllm_rl.models import DiffusionModel
from dllm_rl.rollouts.engine import RolloutSettings

WEIGHTS = str(Path(__file__).resolve().parents[2] / "recipes/weights/arithmetic")


@pytest.fixture
def installed() -> None:
    pytest.importorskip("lm_eval", reason="needs the extra eval")


@dataclass
class Request:
    """What lm-eval hands over."""

    args: tuple[Any, ...]
    doc_id: int = 0


def language_model(model: DiffusionModel, **how: Any) -> DiffusionLM:
    return DiffusionLM(model, RolloutSettings(sampler="llada", gen_length=6, temperature=0.0), num_draws=4, **how)


def ids(model: DiffusionModel, text: str) -> list[int]:
    assert model.tokenizer is not None
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_without_the_extra_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ours, "LM", object)
    assert main(["lm-eval", "no/model", "--tasks", "x"]) == 2
    assert "pip install 'dllm-rl[eval]'" in capsys.readouterr().err


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("batch_size", [1, 64])
def test_generation_is_ours_up_to_the_first_stop(tiny: DiffusionModel, batch_size: int) -> None:
    contexts = ["1+1=", "12+3=", "7="]
    expected = []
    for context in contexts:
        out = dllm_rl.generate(tiny, [ids(tiny, context)], gen_length=6).completions[0]
        end = next((place for place, token in enumerate(out) if token in tiny.spec.eos_ids), 6)
        assert tiny.tokenizer is not None
        expected.append(tiny.tokenizer.decode(out[:end]))
    lm = language_model(tiny, batch_size=batch_size)
    assert lm.generate_until([Request((context, {})) for context in contexts]) == expected
    longest = max(expected, key=len)
    stops = {"until": ["nowhere", longest[2:], longest[1:]]}
    assert lm.generate_until([Request((contexts[expected.index(longest)], stops))]) == [longest[:1]]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("batch_size", [1, 64])
def test_log_likelihood_is_the_bound(tiny: DiffusionModel, batch_size: int) -> None:
    pairs = [("1+1=", "02"), ("", "12"), ("3+4=", "7")]
    lm = language_model(tiny, batch_size=batch_size, seed=3)
    found = lm.loglikelihood([Request(pair, place + 7) for place, pair in enumerate(pairs)])
    for place, (context, continuation) in enumerate(pairs):
        row = [ids(tiny, context)], [ids(tiny, continuation)]
        expected = dllm_rl.elbo(tiny, *row, num_draws=4, seed=3, sample_ids=[place + 7]).value.item()
        assert found[place][0] == pytest.approx(expected, abs=1e-5)


def fills(model: DiffusionModel, context: list[int], length: int) -> list[int]:
    """Greedy decoding by hand: the surest prediction of a hidden position is written, one after the other."""
    tokens = torch.tensor([[*context, *[model.spec.mask_id] * length]])
    for _ in range(length):
        logits = model.logits(tokens)[0]
        logits[:, list(model.spec.forbidden_ids)] = -math.inf
        best = logits.double().softmax(-1).max(-1)
        hidden = tokens[0] == model.spec.mask_id
        place = int(best.values.masked_fill(~hidden, -1).argmax())
        tokens[0, place] = best.indices[place]
    return list(tokens[0, len(context) :].tolist())


@pytest.mark.usefixtures("installed")
def test_greedy_is_one_by_one_filling() -> None:
    model = dllm_rl.load_model(WEIGHTS)
    contexts = ["123+459=", "700+081=", "005+006="]
    assert model.tokenizer is not None
    greedy = [model.tokenizer.decode(fills(model, ids(model, context), 4)) for context in contexts]
    assert all(len(text) == 4 for text in greedy)
    wrong = [text[:-1] + ("1" if text[-1] == "0" else "0") for text in greedy]
    requests = [Request(pair) for pair in [*zip(contexts, greedy, strict=True), *zip(contexts, wrong, strict=True)]]
    found = language_model(model).loglikelihood([*requests, Request(("1+1=", "0"))])
    assert [greedy for _, greedy in found[:6]] == [True] * 3 + [False] * 3


@pytest.mark.usefixtures("installed")
def test_rolling_is_the_sum_over_pieces(tiny: DiffusionModel) -> None:
    lm = language_model(tiny)
    room = tiny.max_positions
    assert room is not None
    text = "12+34=46;" * (room // 9 + 3)
    pieces = [text[:room], text[room:]]
    expected = [
        dllm_rl.elbo(tiny, [[]], [ids(tiny, piece)], num_draws=4, sample_ids=[5]).value.item() for piece in pieces
    ]
    assert lm.loglikelihood_rolling([Request((text,), 5)])[0] == pytest.approx(sum(expected), rel=1e-5)


@pytest.mark.usefixtures("installed")
def test_white_space_goes_with_the_continuation(tiny: DiffusionModel) -> None:
    lm = language_model(tiny)
    assert lm.split("1+1 ", "2") == (ids(tiny, "1+1"), ids(tiny, " 2"))
    assert lm.split("", "2") == ([], ids(tiny, "2"))
    with pytest.raises(dllm_rl.errors.DataError, match="empty continuation"):
        lm.split("1", "")


@pytest.mark.usefixtures("installed")
def test_a_token_across_the_boundary_is_not_cut(tiny: DiffusionModel) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    lm = language_model(tiny)
    lm.tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces)  # type: ignore[no-untyped-call]
    assert lm.split("a", "b") == ([0], [1])  # together they are one token, which no context holds
    assert lm.split("ba", "ab") == ([1, 0], [2])


@pytest.mark.usefixtures("installed")
def test_what_is_too_long_is_refused(tiny: DiffusionModel) -> None:
    assert tiny.max_positions is not None
    with pytest.raises(dllm_rl.errors.DataError, match="positions|tokens"):
        language_model(tiny).loglikelihood([Request(("1" * tiny.max_positions, "2"))])


@pytest.mark.usefixtures("installed")
def test_draws_follow_the_seed_and_the_place(tiny: DiffusionModel) -> None:
    settings = RolloutSettings(sampler="rl", gen_length=12, temperature=2.0)
    requests = [Request(("1+1=", {}))] * 4

    def written(**how: Any) -> list[str]:
        return DiffusionLM(tiny, settings, **how).generate_until(requests)

    first = written(seed=1)
    assert written(seed=1, batch_size=1) == first != written(seed=2)
    assert len(set(first)) > 1  # equal questions at other places draw apart


@pytest.mark.usefixtures("installed")
def test_the_chat_template_is_the_tokenizer_s(tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = language_model(tiny)
    assert tiny.tokenizer is not None
    chat = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    monkeypatch.setattr(tiny.tokenizer, "chat_template", None)
    with pytest.raises(dllm_rl.errors.DataError, match="leave --apply-chat-template out"):
        lm.apply_chat_template(chat)
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<A>"
    monkeypatch.setattr(tiny.tokenizer, "chat_template", template + "{% endif %}")
    assert lm.chat_template() == "" and lm.chat_template(True).startswith(template)
    assert lm.apply_chat_template(chat) == "<user>1</><assistant>2</><A>"
    assert lm.apply_chat_template(chat, add_generation_prompt=False) == "<user>1</><assistant>2"
    lm.tokenizer = type("Named", (), {"name_or_path": "owner/name"})()
    assert lm.tokenizer_name == "owner__name"


@pytest.mark.usefixtures("installed")
def test_answers_are_kept_for_lm_eval_s_cache(tiny: DiffusionModel, tmp_path: Path) -> None:
    """Asked again, its own cache answers, without the model."""
    from lm_eval.api.model import CachingLM

    lm = language_model(tiny)
    cached = CachingLM(lm, str(tmp_path / "cache.db"))
    asked = {
        "generate_until": Request(("1+1=", {"until": ["x"]})),
        "loglikelihood": Request(("1+1=", "2")),
        "loglikelihood_rolling": Request(("12",)),
    }
    found = {name: getattr(cached, name)([request]) for name, request in asked.items()}
    del lm.model
    again = {name: getattr(cached, name)([request]) for name, request in asked.items()}
    assert json.dumps(again) == json.dumps(found)


@pytest.mark.parametrize(
    ("stops", "left"),
    [((), "abcb"), ("cb", "ab"), (["", "c"], "ab"), (["x", "c", "b"], "a"), (["a"], ""), ([""], "abcb")],
)
def test_text_before_the_first_stop(stops: Any, left: str) -> None:
    assert ours._cut("abcb", stops) == left


def test_a_line_for_every_number() -> None:
    results = {
        "results": {
            "t": {
                "alias": "t",
                "em,strict": 0.25,
                "em_stderr,strict": 0.125,
                "acc,none": 1.0,
                "acc_stderr,none": "N/A",
                "f1,none": 0.5,
            },
            "u": {"acc,none": 0.0},
        },
        "versions": {"t": 3},
        "n-samples": {"t": {"original": 9, "effective": 4}},
    }
    assert ours.lines_of(results) == [
        "t v3: em (strict) 0.2500 +- 0.1250 (n 4)",
        "t v3: acc 1.0000 (n 4)",
        "t v3: f1 0.5000 (n 4)",
        "u v: acc 0.0000 (n )",
    ]


TASK = """\
task: our_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{{target}}}}}"
target_delimiter: ""
fewshot_delimiter: "+"
{more}
metadata: {{version: 3}}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_tasks_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The trained model ranks right sums above sums that are off by 111; what it writes is scored as we score it."""
    sums = [(123, 459), (700, 81), (5, 6), (250, 250), (999, 1), (340, 18)]
    rows = [
        {
            "question": f"{a:03}+{b:03}=",
            "answer": f"{a + b:04}",
            "choices": [f"{a + b + 111:04}", f"{a + b:04}"],
            "gold": 1,
        }
        for a, b in sums
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metric = "metric_list: [{metric: METRIC, aggregation: mean, higher_is_better: true}]"
    generate = "generation_kwargs: {until: ['x']}\n" + metric.replace("METRIC", "exact_match")
    choose = "doc_to_choice: '{{choices}}'\n" + metric.replace("METRIC", "acc")
    for name, kind, target, more in (
        ("sums", "generate_until", "answer", generate),
        ("choice", "multiple_choice", "gold", choose),
    ):
        text = TASK.format(name=name, kind=kind, target=target, more=more, rows=tmp_path / "rows.jsonl")
        (tmp_path / f"{name}.yaml").write_text(text)
    command = ["lm-eval", WEIGHTS, "--tasks", "our_sums,our_choice", "--include-path", str(tmp_path)]
    flags = ["--gen-length", "5", "--num-draws", "8", "--device", "cpu", "--out", str(tmp_path / "out.json")]
    assert main([*command, *flags]) == 0
    printed = capsys.readouterr().out
    model = dllm_rl.load_model(WEIGHTS)
    out = dllm_rl.generate(model, [ids(model, row["question"]) for row in rows], gen_length=5).completions
    assert model.tokenizer is not None
    texts = [model.tokenizer.decode([t for t in row if t not in model.spec.eos_ids]) for row in out]
    right = sum(text == row["answer"] for text, row in zip(texts, rows, strict=True)) / len(rows)
    assert f"our_sums v3: exact_match {right:.4f}" in printed and "(n 6)" in printed
    assert "our_choice v3: acc 1.0000" in printed
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["protocol"]["num_draws"] == 8 and len(content["samples"]["our_sums"]) == 6
    assert main([*command[:3], "our_nothing", *flags]) == 2
    assert "has no task 'our_nothing'" in capsys.readouterr().err
    shutil.copytree(WEIGHTS, tmp_path / "chatty")
    (tmp_path / "chatty/chat_template.jinja").write_text("{% for m in messages %}0+{{ m.content }}{% endfor %}")
    unsafe = (tmp_path / "sums.yaml").read_text().replace("our_sums", "our_unsafe") + "unsafe_code: true\n"
    (tmp_path / "unsafe.yaml").write_text(unsafe)
    few = ["--limit", "2", "--num-fewshot", "1", "--seed", "5", "--batch-size", "3", "--apply-chat-template"]
    chat = ["lm-eval", str(tmp_path / "chatty"), "--tasks", "our_unsafe", *command[4:], *flags, *few]
    assert main(chat) == 2
    assert "allow it with --allow-unsandboxed" in capsys.readouterr().err
    assert main([*chat, "--allow-unsandboxed"]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["n-samples"]["our_unsafe"]["effective"] == 2 and content["n-shot"]["our_unsafe"] == 1
    asked = json.dumps(content["samples"]["our_unsafe"][0]["arguments"])
    assert '"0+' in asked and f'+{rows[0]["question"]}"' in asked
    how = content["protocol"]
    assert (how["seed"], how["batch_size"], how["chat_template"], how["dtype"]) == (5, 3, True, "auto")
    assert how["model"] == chat[1] and how["revision"] == revision.revision_of(chat[1])
    assert f"revision {how['revision']} |" in capsys.readouterr().out
    assert main([*chat[:-1], "--out", str(tmp_path / "no/such/out.json")]) == 2
