"""Teacher likelihood against a server whose probabilities are known, and against servers that answer wrongly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dllm_rl.errors import RewardError
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.scoring.endpoint import Endpoint
from dllm_rl.scoring.teacher import Teacher
from dllm_rl.shipped import shipped_root
from tests.rewards.server import ANSWER, CHAT, START, Server, failing, logp, serving, tokenize


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def teacher(server: Server, **settings: Any) -> Teacher:
    return Teacher(Endpoint(server.url, "m", backoff=0.0, attempts=2), **settings)


def mean(before: list[int], completion: str) -> float:
    ids = [*before, *tokenize(completion)]
    scores = [logp(a, b) for a, b in pairwise(ids)][len(before) - 1 :]
    return sum(scores) / len(scores)


def test_the_mean_is_over_the_completion_s_own_teacher_tokens(server: Server) -> None:
    prompts, completions = ["2+2=", "xa", "abc"], ["4 abcd", "bcd", "d\u2212\u221a"]
    found = teacher(server)(prompts, completions)
    expected = [mean([START, *tokenize(p)], c) for p, c in zip(prompts, completions, strict=True)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert [len(tokenize(c)) for c in completions] == [4, 2, 3]


def test_no_token_straddles_the_boundary(server: Server) -> None:
    """Written in one piece, "=4", "ab" and "cd" would each be one token, half of it the prompt's."""
    for prompt, completion in (("2+2=", "4"), ("xa", "b"), ("abc", "d")):
        assert len(tokenize(prompt + completion)) == len(tokenize(prompt)) + len(tokenize(completion)) - 1
        (found,) = teacher(server)([prompt], [completion])
        assert found == logp(tokenize(prompt)[-1], tokenize(completion)[0])


def test_a_chat_gets_the_teacher_s_own_template(server: Server) -> None:
    prompt = [{"role": "system", "content": "ab"}, {"role": "user", "content": "cd?"}]
    (found,) = teacher(server)([prompt], [[{"role": "assistant", "content": "xy"}]])
    assert found == mean([START, CHAT, *tokenize("ab"), CHAT, *tokenize("cd?"), ANSWER], "xy")


def test_an_answer_that_the_prompt_begins_is_gone_on_with(server: Server) -> None:
    prompt = [{"role": "user", "content": "cd?"}, {"role": "assistant", "content": "ab"}]
    (found,) = teacher(server)([prompt], ["xy"])
    assert found == mean([START, CHAT, *tokenize("cd?"), ANSWER, *tokenize("ab")], "xy")


def test_batches_and_orders_change_nothing(server: Server) -> None:
    prompts, completions = [f"p{i % 3}=" for i in range(10)], ["ab" * (i + 1) for i in range(10)]
    one = teacher(server, batch_size=1)(prompts, completions)
    assert teacher(server, batch_size=4)(prompts, completions) == one
    assert teacher(server, batch_size=64)(prompts[::-1], completions[::-1]) == one[::-1]
    server.requests.clear()
    teacher(server, batch_size=4)(prompts, completions)
    assert len(server.asked("/v1/completions")) == 3
    assert len(server.asked("/tokenize")) == 3 + 10  # a prompt's group asks for it once


def test_an_empty_completion_is_worth_less_than_any_other(server: Server) -> None:
    assert teacher(server)(["p", "p"], ["", "ab"])[0] == -12.0 < -97 / 16
    assert teacher(server, empty=-3.0)(["p"], [""]) == [-3.0]


def test_faults_that_pass_do_not_show(server: Server) -> None:
    sound = teacher(server)(["p"], ["ab"])
    server.faults = [failing(500), failing(200, "<html>")]
    assert Teacher(Endpoint(server.url, "m", backoff=0.0, attempts=3))(["p"], ["ab"]) == sound


def set_logprobs(*values: Any) -> Any:
    def change(answer: dict[str, Any]) -> dict[str, Any]:
        if "choices" in answer:
            answer["choices"][0]["logprobs"]["token_logprobs"] = values[0] if len(values) == 1 else list(values)
        return answer

    return change


def drop_choices(answer: dict[str, Any]) -> dict[str, Any]:
    return answer | {"choices": answer.get("choices", [])[1:]} if "choices" in answer else answer


def same_index(answer: dict[str, Any]) -> dict[str, Any]:
    for choice in answer.get("choices", []):
        choice["index"] = 0
    return answer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_logprobs(None, -1.0), "gave 2 log-probabilities for a text of 3 tokens"),
        (set_logprobs(None, -1.0, -1.0, -1.0, -1.0), "gave 5 log-probabilities for a text of 3"),
        (set_logprobs(None), "gave NoneType log-probabilities"),
        (set_logprobs(None, -1.0, None), "gave None as a log-probability"),
        (set_logprobs(None, -1.0, 0.5), "gave 0.5 as a log-probability"),
        (set_logprobs(None, -1.0, "-1"), "gave '-1' as a log-probability"),
        (set_logprobs(None, -1.0, math.nan), "gave nan as a log-probability"),
        (set_logprobs(None, -1.0, -math.inf), "gave -inf as a log-probability"),
        (set_logprobs(None, -1.0, -9999.0), "gave -9999.0 as a log-probability"),  # vLLM's minus infinity
        (drop_choices, r"answered texts \[0\] of 2"),
        (lambda a: a | {"choices": a["choices"] + a["choices"][:1]} if "choices" in a else a, r"texts \[1, 0\] of 2"),
        (same_index, r"answered texts \[0\] of 2"),
        (lambda a: a if "tokens" in a else {"choices": [{"index": 0, "text": "ab"}]}, "expected choices with logprobs"),
        (lambda a: a if "tokens" in a else {"error": "no"}, "answered {'error': 'no'}; expected choices"),
        (lambda a: {"tokens": "ab"}, "/tokenize answered .*expected a list of integers"),
        (lambda a: {"tokens": [1.5]}, "/tokenize answered"),
        (lambda a: a | {"tokens": []} if a.get("tokens", [0])[0] == START else a, "a prompt has no tokens"),
    ],
)
def test_answers_that_make_no_sense_are_refused(server: Server, change: Any, message: str) -> None:
    server.change = change
    with pytest.raises(RewardError, match=message):
        teacher(server)(["p", "p"], ["x", "x"])


def test_a_server_without_tokenize_is_told(server: Server) -> None:
    server.faults = [failing(404, "no such page")]
    with pytest.raises(RewardError, match="/tokenize: status 404"):
        teacher(server)(["p"], ["x"])


def test_the_shipped_reward_is_the_teacher_of_the_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "teacher.py").write_text((shipped_root() / "rewards/teacher.py").read_text())
    monkeypatch.setenv("DLLM_RL_TEACHER_URL", server.url)
    monkeypatch.setenv("DLLM_RL_TEACHER_MODEL", "m")
    panel = RewardPanel.load([f"{tmp_path}/teacher.py:log_likelihood"])
    total = panel(["p"], ["ab"], [[7]], {"answer": ["q"]}).total
    assert total == [mean([START, *tokenize("p")], "ab")]
    assert server.asked("/v1/completions")[0]["model"] == "m"
