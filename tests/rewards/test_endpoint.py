"""Requests over real sockets: what is tried again, what is not, and what errors say and keep to themselves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from dllm_rl.errors import RecipeError, RewardError
from dllm_rl.scoring.endpoint import Endpoint
from tests.rewards.server import Fault, Server, cut_short, failing, hanging_up, send, serving

KEY = "sk-very-secret"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def endpoint(server: Server, **settings: object) -> Endpoint:
    return Endpoint(server.url, "m", **{"key": KEY, "backoff": 0.0, "timeout": 30.0, **settings})  # type: ignore[arg-type]


def tokens(found: Endpoint, *texts: str) -> list[object]:
    bodies = [{"prompt": text, "add_special_tokens": False} for text in texts]
    return [answer["count"] for answer in found.post_all("//tokenize", bodies)]


def test_answers_keep_the_order_of_the_requests(server: Server) -> None:
    texts = ["x" * length for length in range(1, 40)]
    assert tokens(endpoint(server, concurrency=7), *texts) == list(range(1, 40))
    assert {key for _, _, key in server.requests} == {f"Bearer {KEY}"}
    assert tokens(endpoint(server)) == []


@pytest.mark.parametrize(
    "fault",
    [
        failing(500),
        failing(503),
        failing(429, Retry_After="0"),
        failing(408),
        failing(200, "<html>no such page</html>"),
        failing(200, "[1, 2]"),
        failing(200, ""),
        cut_short,
        hanging_up,
    ],
    ids=["500", "503", "429", "408", "html", "a list", "nothing", "cut short", "hangs up"],
)
def test_what_may_pass_is_tried_again(server: Server, fault: Fault) -> None:
    server.faults = [fault, fault]
    assert tokens(endpoint(server, attempts=3), "xyz") == [3]
    assert len(server.requests) == 3


def test_a_server_cannot_make_us_wait_forever(server: Server) -> None:
    server.faults = [failing(429, Retry_After="86400")]
    assert tokens(endpoint(server, timeout=0.2), "xyz") == [3]


def test_what_does_not_pass_is_given_up(server: Server) -> None:
    server.faults = [failing(500, f"out of memory, {KEY}")] * 9
    with pytest.raises(
        RewardError, match=r"/tokenize: status 500, 'out of memory, \*\*\*', after 3 attempts"
    ) as caught:
        tokens(endpoint(server, attempts=3), "x")
    assert len(server.requests) == 3 and KEY not in str(caught.value)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 413])
def test_wrong_requests_are_not_sent_again(server: Server, status: int) -> None:
    server.faults = [failing(status, f'{{"error": "key {KEY} is unknown"}}', Location="/elsewhere")]
    with pytest.raises(RewardError, match=f"status {status}, .*the model asked for is 'm'") as caught:
        tokens(endpoint(server), "x")
    assert [path for path, _, _ in server.requests] == ["/tokenize"] and KEY not in str(caught.value)


def test_a_server_that_does_not_answer_is_given_up_in_time(server: Server) -> None:
    def waits(handler: BaseHTTPRequestHandler) -> None:
        server.release.wait()

    server.faults = [waits, waits]
    with pytest.raises(RewardError, match=r"no answer within 0\.05 s, after 2 attempts"):
        tokens(endpoint(server, timeout=0.05, attempts=2), "x")


def test_an_answer_that_drips_is_given_up_in_time(server: Server) -> None:
    def drips(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.release.wait(0.01):  # each byte comes in time, all of them never
            handler.wfile.write(b" ")

    server.faults = [drips]
    with pytest.raises(RewardError, match=r"no answer within 0\.2 s, after 1 attempt;"):
        tokens(endpoint(server, timeout=0.2, attempts=1), "x")


def test_where_nobody_listens_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(RewardError, match=rf"{url}/completions: ConnectionRefusedError: .*after 2 attempts.*is up"):
        Endpoint(url, "m", attempts=2, backoff=0.0).post_all("/completions", [{}])


def test_requests_are_under_way_together(server: Server) -> None:
    both = threading.Barrier(2, timeout=20)

    def meets(handler: BaseHTTPRequestHandler) -> None:
        both.wait()
        send(handler, 200, b'{"count": 7}')

    server.faults = [meets, meets]
    assert tokens(endpoint(server, attempts=1, concurrency=2), "a", "b") == [7, 7]


def test_one_failure_ends_the_others(server: Server) -> None:
    server.faults = [failing(401)]
    with pytest.raises(RewardError, match="status 401"):
        tokens(endpoint(server, concurrency=1), *"abcdefgh")
    assert len(server.requests) == 1


def test_keys_are_not_shown() -> None:
    assert KEY not in repr(Endpoint("https://h/v1", "m", KEY))
    for login in ("me:hunter2", ":hunter2", "hunter2"):
        with pytest.raises(RecipeError, match="user name or password") as caught:
            Endpoint(f"https://{login}@h/v1", "m")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://h/v1", "", "http://"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(RecipeError, match="expected one like http://localhost:8000/v1"):
        Endpoint(url, "m")


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("URL", "MODEL", "KEY"):
        monkeypatch.delenv(f"DLLM_RL_JUDGE_{part}", raising=False)
    with pytest.raises(RecipeError, match="DLLM_RL_JUDGE_URL is not set; expected the judge's address"):
        Endpoint.from_environment("judge")
    monkeypatch.setenv("DLLM_RL_JUDGE_URL", "http://h:1/v1")
    with pytest.raises(RecipeError, match="DLLM_RL_JUDGE_MODEL is not set; expected the judge's name"):
        Endpoint.from_environment("judge")
    monkeypatch.setenv("DLLM_RL_JUDGE_MODEL", "m")
    assert Endpoint.from_environment("judge") == Endpoint("http://h:1/v1", "m", None)
    monkeypatch.setenv("DLLM_RL_JUDGE_KEY", KEY)
    assert Endpoint.from_environment("judge").key == KEY
