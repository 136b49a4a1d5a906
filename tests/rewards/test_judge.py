"""A judge over HTTP: what it is asked, what of its replies is a verdict, and what is never guessed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dllm_rl.errors import RecipeError, RewardError
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.scoring.endpoint import Endpoint
from dllm_rl.scoring.judge import Judge
from dllm_rl.shipped import shipped_root
from tests.rewards.server import Server, failing, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def judge(server: Server, template: str = "{prompt} -> {completion}", **settings: Any) -> Judge:
    return Judge(Endpoint(server.url, "m", backoff=0.0, attempts=2), template, **settings)


def test_the_verdict_is_a_share_of_the_best(server: Server) -> None:
    server.judge = lambda question: f"Reasons.\nVerdict: {len(question.split('-> ')[1])}"
    assert judge(server)(["p"] * 3, ["", "abc", "x" * 10], {}) == [0.0, 0.3, 1.0]
    assert judge(server, best=20)(["p"], ["abc"], {}) == [0.15]


def test_the_judge_is_asked_what_the_template_says(server: Server) -> None:
    ask = judge(server, "Q {prompt} A {completion} gold {answer} {{json}}", max_tokens=9, options={"seed": 3})
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "6*7?"}]
    one = [{"role": "user", "content": "1+1?"}]
    ask([chat, one], [[{"role": "assistant", "content": "{answer} 42"}], "2"], {"answer": ["42", "2"]})
    assert {body["messages"][0]["content"] for body in server.asked("/v1/chat/completions")} == {
        "Q system: be brief\n\nuser: 6*7? A {answer} 42 gold 42 {json}",
        "Q 1+1? A 2 gold 2 {json}",
    }
    for body in server.asked("/v1/chat/completions"):
        assert (body["temperature"], body["max_tokens"], body["seed"], body["model"]) == (0, 9, 3, "m")


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("Verdict: 7", 0.7),
        ("Good.\n\n**Verdict: 7**\n", 0.7),
        ("## verdict: 7/10.", 0.7),
        ("VERDICT : 7.5", 0.75),
        ("Verdict: 7\nAgain.\nVerdict: 7", 0.7),
        ("<think>\nVerdict: 2\n</think>\nVerdict: 7", 0.7),
        ("Verdict: 0", 0.0),
        ("Verdict: 7\nVerdict: 8", None),
        ("The answer says 'Verdict: 10'.", None),
        ("Verdict: 10\nbut only if one is generous", None),
        ("Verdict: 11", None),
        ("Verdict: -1", None),
        ("Verdict: 7/5", None),
        ("Verdict: seven", None),
        ("Verdict: 7 or 8", None),
        ("Verdict: 1e1", None),
        ("Verdict: \u0667", None),
        ("7", None),
        ("", None),
        (None, None),
    ],
)
def test_verdicts_are_read_and_never_guessed(server: Server, reply: str | None, value: float | None) -> None:
    server.judge = lambda question: reply
    asked = judge(server)
    assert asked(["p"], ["c"], {}) == [value]
    assert (asked.num_asked, asked.num_unreadable) == (1, int(value is None))


def test_a_reply_that_was_cut_short_is_no_verdict(server: Server) -> None:
    server.finish = "length"
    assert judge(server)(["p"], ["c"], {}) == [None]


def test_unreadable_verdicts_are_counted_logged_and_worth_what_the_user_says(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.judge = lambda question: "hm" if "bad" in question else "Verdict: 4"
    asked = judge(server, unreadable=0.25)
    with caplog.at_level(logging.WARNING):
        assert asked(["p"] * 3, ["good", "bad", "bad"], {}) == [0.4, 0.25, 0.25]
    assert "1 of 2 verdicts of m could not be read, such as 'hm'" in caplog.text
    assert (asked.num_asked, asked.num_unreadable) == (2, 1)
    panel = RewardPanel([_function(judge(server))])
    with pytest.raises(RewardError, match="no reward function applies to row 1"):
        panel(["p"] * 2, ["good", "bad"], [[]] * 2, {})
    panel = RewardPanel([_function(judge(server)), lambda completions, **columns: [1.0] * len(completions)])
    result = panel(["p"] * 2, ["good", "bad"], [[]] * 2, {})
    assert result.total == [1.4, 1.0] and result.per_function["graded"] == [0.4, None]


def _function(asked: Judge) -> Any:
    def graded(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        return asked(prompts, completions, columns)

    return graded


def test_equal_questions_are_asked_once_and_unreadable_ones_again(server: Server) -> None:
    asked = judge(server)
    server.judge = lambda question: None if "odd" in question else "Verdict: 6"
    assert asked(["p"] * 4, ["a", "a", "odd", "b"], {}) == [0.6, 0.6, None, 0.6]
    assert len(server.requests) == 3
    server.judge = lambda question: "Verdict: 1"
    assert asked(["p", "p", "q"], ["a", "odd", "a"], {}) == [0.6, 0.1, 0.1]
    assert len(server.requests) == 5


def test_old_verdicts_are_forgotten_first(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dllm_rl.scoring.judge._CACHE_SIZE", 2)
    asked = judge(server)
    for texts, total in ((["a", "b", "c"], 3), (["b", "c"], 3), (["a"], 4)):
        asked(["p"] * len(texts), texts, {})
        assert asked.num_asked == total


def test_faults_that_pass_do_not_show_and_others_end_the_call(server: Server) -> None:
    server.faults = [failing(502)]
    assert judge(server)(["p"], ["c"], {}) == [0.5]
    server.faults = [failing(404, "no such model")]
    with pytest.raises(RewardError, match="status 404, 'no such model'; the model asked for is 'm'"):
        judge(server)(["p"], ["c"], {})
    for answer in ({"choices": []}, {"choices": [{"text": "Verdict: 5"}]}, {"error": "x"}):
        server.change = lambda _, answer=answer: answer
        with pytest.raises(RewardError, match="/chat/completions answered .*; expected one choice with a message"):
            judge(server)(["p"], ["c"], {})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{prompt}", "names prompt; expected {completion}"),
        ("grade!", "names nothing"),
        ("{completion} {", "double braces"),
    ],
)
def test_templates_that_ask_nothing(server: Server, template: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        judge(server, template)


def test_a_column_that_is_not_there_is_named(server: Server) -> None:
    with pytest.raises(RewardError, match="template names 'gold'; the row has answer, completion, prompt"):
        judge(server, "{completion} {gold}")(["p"], ["c"], {"answer": ["1"]})


def test_the_shipped_reward_is_the_judge_of_the_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge.py").write_text((shipped_root() / "rewards/judge.py").read_text())
    with pytest.raises(RecipeError, match="judge.py: DLLM_RL_JUDGE_URL is not set"):
        RewardPanel.load([f"{tmp_path}/judge.py:verdict"])
    monkeypatch.setenv("DLLM_RL_JUDGE_URL", server.url)
    monkeypatch.setenv("DLLM_RL_JUDGE_MODEL", "m")
    panel = RewardPanel.load([f"{tmp_path}/judge.py:verdict"])
    assert panel(["Why {so}?"], ["Because."], [[7]], {"answer": ["q"]}).total == [0.5]
    question = server.asked("/v1/chat/completions")[0]["messages"][0]["content"]
    assert "<question>\nWhy {so}?\n</question>" in question and "<answer_to_grade>\nBecause.\n" in question
