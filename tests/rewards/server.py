"""A model server in a thread: OpenAI's completions, echoed with log-probabilities, chat, and vLLM's /tokenize.

Its teacher cuts text into pairs and single characters and gives every token a log-probability that depends on the one
before it. Its judge says what the test wants. `faults` are served first, one a request.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

Fault = Callable[[BaseHTTPRequestHandler], None]
PAIRS = ["ab", "cd", "bc", "=4"]
START, CHAT, ANSWER = 1, 2, 3


def tokenize(text: str) -> list[int]:
    """Greedy from the left: pairs where there are any, else characters."""
    ids, place = [], 0
    while place < len(text):
        pair = text[place : place + 2]
        ids.append(10 + PAIRS.index(pair) if pair in PAIRS else 100 + ord(text[place]))
        place += 2 if pair in PAIRS else 1
    return ids


def logp(before: int, token: int) -> float:
    return -((7 * before + 3 * token) % 97) / 16


class Server:
    """What was asked, and how to answer."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any], str | None]] = []
        self.faults: list[Fault] = []
        self.judge: Callable[[str], str | None] = lambda question: "Verdict: 5"
        self.change: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.finish = "stop"
        self.release = threading.Event()
        self.url = ""

    def asked(self, path: str) -> list[dict[str, Any]]:
        return [body for at, body, _ in self.requests if at == path]

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        return {
            "/tokenize": self._tokenize,
            "/v1/completions": self._completions,
            "/v1/chat/completions": self._chat,
        }[path](body)

    def _tokenize(self, body: dict[str, Any]) -> Any:
        if "messages" in body:
            assert body["add_generation_prompt"] != body["continue_final_message"]  # vLLM refuses both
            ids = [START]
            for message in body["messages"]:
                ids += [ANSWER if message["role"] == "assistant" else CHAT, *tokenize(message["content"])]
            ids += [ANSWER] * body["add_generation_prompt"]
        else:
            ids = [START] * body["add_special_tokens"] + tokenize(body["prompt"])
        return self.change({"tokens": ids, "count": len(ids), "max_model_len": 4096})

    def _completions(self, body: dict[str, Any]) -> Any:
        assert body["echo"] and body["logprobs"] == 1 and body["max_tokens"] == 1
        choices = []
        for index, ids in enumerate(body["prompt"]):
            full = [*ids, 99]  # the token that is generated
            scores = [None, *(logp(a, b) for a, b in pairwise(full))]
            choices.append({"index": index, "text": "?", "logprobs": {"token_logprobs": scores, "tokens": full}})
        return self.change({"object": "text_completion", "choices": choices[::-1]})

    def _chat(self, body: dict[str, Any]) -> Any:
        reply = self.judge(body["messages"][0]["content"])
        choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": self.finish}
        return self.change({"object": "chat.completion", "choices": [choice]})


@contextmanager
def serving() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append((self.path, body, self.headers["Authorization"]))
            if state.faults:
                state.faults.pop(0)(self)
            else:
                send(self, 200, json.dumps(state.answer(self.path, body)).encode())

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: Any) -> None:
            pass  # a client that stopped waiting

    server = Quiet(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.release.set()
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def failing(status: int, text: str = "busy", **headers: str) -> Fault:
    return lambda handler: send(handler, status, text.encode(), **headers)


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    send(handler, 200, b'{"choices": [', Content_Length="5000")
    handler.close_connection = True


def hanging_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
