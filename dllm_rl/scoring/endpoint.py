"""A server that speaks OpenAI's protocol, such as the one `vllm serve` starts: requests, time limits, retries.

Standard library only. Workers are daemon threads, so that a server that hangs keeps no process alive.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dllm_rl.errors import MissingSettingError, RecipeError, RewardError, one_line

Json = dict[str, Any]
_PASSING = {408, 425, 429}
"""Of the statuses below 500, those that say: later."""
_LONGEST_ANSWER = 256 * 2**20
_EXCERPT = 200


class _Passing(Exception):
    """A failure that may not happen again."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected request would carry prompts, and perhaps the key, to a server that nobody named."""

    def redirect_request(self, *_: Any) -> None:
        return None


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Made once: it reads certificates and the environment's proxies."""
    return urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is served.

    Raises:
        RecipeError: the address is not an http or https address, or holds a password.
    """

    url: str
    """Up to and including /v1, such as http://localhost:8000/v1."""
    model: str
    """Its name there."""
    key: str | None = field(default=None, repr=False)
    """Sent as bearer token; appears in no message."""
    timeout: float = 60.0
    """Seconds one attempt may take."""
    attempts: int = 4
    """How often a request is sent before it is given up. Wrong requests are not sent again."""
    backoff: float = 0.5
    """Seconds before the second attempt; doubled with each further one. Retry-After is kept to, up to `timeout`."""
    concurrency: int = 16
    """Requests under way at once."""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.username or parts.password:
            raise RecipeError("the address of an endpoint holds a user name or password; give the key apart")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RecipeError(f"the address of an endpoint is {self.url!r}; expected one like http://localhost:8000/v1")

    @classmethod
    def from_environment(cls, role: str) -> Endpoint:
        """The endpoint in DLLM_RL_<ROLE>_URL and DLLM_RL_<ROLE>_MODEL, with the key in DLLM_RL_<ROLE>_KEY if set.

        Raises:
            MissingSettingError: one of the first two is not set.
        """
        names = {part: f"DLLM_RL_{role.upper()}_{part}" for part in ("URL", "MODEL", "KEY")}
        for part in ("URL", "MODEL"):
            if not os.environ.get(names[part]):
                raise MissingSettingError(
                    f"{names[part]} is not set; expected the {role}'s "
                    f"{'address, like http://localhost:8000/v1' if part == 'URL' else 'name on its server'}"
                )
        return cls(os.environ[names["URL"]], os.environ[names["MODEL"]], os.environ.get(names["KEY"]) or None)

    def post_all(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[Json]:
        """Answers to requests, in order. The first that is given up ends them all.

        Args:
            path: below `url`, such as "/completions"; with two slashes, as in "//tokenize", below the server's root.

        Raises:
            RewardError: a request was refused, or failed `attempts` times.
        """
        answers: list[Json] = [{} for _ in bodies]
        failures: list[Exception] = []
        waiting: queue.SimpleQueue[tuple[int, Mapping[str, Any]]] = queue.SimpleQueue()
        stop = threading.Event()
        for item in enumerate(bodies):
            waiting.put(item)

        def work() -> None:
            while not stop.is_set():
                try:
                    place, body = waiting.get_nowait()
                    answers[place] = self._post(path, body, stop)
                except queue.Empty:
                    return
                except Exception as error:
                    failures.append(error)
                    stop.set()

        workers = [threading.Thread(target=work, daemon=True) for _ in range(min(self.concurrency, len(bodies)))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failures:
            raise failures[0]
        return answers

    def _post(self, path: str, body: Mapping[str, Any], stop: threading.Event) -> Json:
        url = self._address(path)
        for attempt in range(1, self.attempts + 1):
            try:
                return self._once(url, body)
            except _Passing as failure:
                last = failure
            wait = max(self.backoff * 2 ** (attempt - 1), min(last.wait, self.timeout))
            if attempt == self.attempts or stop.wait(wait):
                break
        raise RewardError(
            f"{url}: {last}, after {attempt} attempt{'s' if attempt > 1 else ''}; expected an answer of the model "
            f"{self.model!r}: see that the server is up, and reachable from here"
        )

    def _address(self, path: str) -> str:
        base = self.url.rstrip("/")
        return base.removesuffix("/v1") + path[1:] if path.startswith("//") else base + path

    def _once(self, url: str, body: Mapping[str, Any]) -> Json:
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if self.key is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        deadline = time.monotonic() + self.timeout
        try:
            with _opener().open(request, timeout=self.timeout) as response:
                text = _read(response, deadline)
        except urllib.error.HTTPError as error:
            raise self._refusal(url, error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            late = isinstance(reason, TimeoutError)
            raise _Passing(
                f"no answer within {self.timeout:g} s" if late else f"{type(reason).__name__}: {one_line(reason)}"
            ) from None
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise _Passing(f"the answer is not a JSON object but {self._excerpt(text)}")
        return answer

    def _refusal(self, url: str, error: urllib.error.HTTPError) -> Exception:
        try:
            said = self._excerpt(error.read(4 * _EXCERPT))
        except (OSError, http.client.HTTPException):
            said = "nothing readable"
        if error.code >= 500 or error.code in _PASSING:
            after = error.headers.get("Retry-After", "")
            return _Passing(f"status {error.code}, {said}", float(after) if after.isdigit() else 0.0)
        return RewardError(f"{url}: status {error.code}, {said}; the model asked for is {self.model!r}")

    def _excerpt(self, text: bytes) -> str:
        """The start of what a server said, on one line; it may have repeated the key."""
        said = " ".join(text.decode(errors="replace").split())
        if self.key:
            said = said.replace(self.key, "***")
        return repr(said if len(said) <= _EXCERPT else f"{said[:_EXCERPT]}...")


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > _LONGEST_ANSWER:
            raise OSError(f"an answer of more than {_LONGEST_ANSWER} bytes")
    return b"".join(parts)
