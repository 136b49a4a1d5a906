"""A language model's opinion of a text, asked over HTTP, read strictly."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from dllm_rl.errors import RecipeError, RewardError
from dllm_rl.scoring.answers import text_of
from dllm_rl.scoring.endpoint import Endpoint, Json

log = logging.getLogger(__name__)
_MARKS = r"[\s*_#>]*"
_VERDICT = re.compile(
    rf"{_MARKS}verdict{_MARKS}:{_MARKS}(-?[0-9]+(?:\.[0-9]+)?)(?:\s*/\s*([0-9]+))?{_MARKS}\.?{_MARKS}", re.IGNORECASE
)
_CACHE_SIZE = 100_000


class Judge:
    """Asks a model to grade completions, at temperature 0, and reads a last line like `Verdict: 7`.

    A verdict that is cut short, missing, out of range or contradicted by another is unreadable: it is counted, logged,
    and never guessed at. The same question is asked once; its verdict is kept in memory.

    Wrong to use as the only judge of a policy that can write to it: completions can argue, or give orders. Fence them
    in the template, and watch what is rewarded.

    Args:
        endpoint: where the judge is served, with /chat/completions.
        template: the question; `{prompt}`, `{completion}` and names of the data's columns stand for the row's. It must
            ask for a last line `Verdict: N`.
        best: N from 0 to this; the value is N / best.
        unreadable: what an unreadable verdict is worth; None: the judge does not apply to the row.
        max_tokens: how long the judge may write.
        options: further fields of the request, such as `chat_template_kwargs`.

    Raises:
        RecipeError: the template does not show the completion, or is none.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        template: str,
        *,
        best: float = 10.0,
        unreadable: float | None = None,
        max_tokens: int = 1024,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.endpoint, self.template, self.best = endpoint, template, best
        self.unreadable, self.max_tokens, self.options = unreadable, max_tokens, dict(options or {})
        self.num_asked = 0
        """Questions sent, over the life of this judge."""
        self.num_unreadable = 0
        """Verdicts of these that could not be read."""
        self._known: dict[bytes, float] = {}
        try:
            named = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        except ValueError as error:
            raise RecipeError(f"the judge's template is none ({error}); double braces that are meant as such") from None
        if "completion" not in named:
            raise RecipeError(
                f"the judge's template names {', '.join(sorted(named)) or 'nothing'}; expected {{completion}}"
            )

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """One number from 0 to 1 per completion, or what `unreadable` says.

        Raises:
            RewardError: the server cannot be reached or refuses, or the template names a column that is not there.
        """
        bodies = [
            self._request({name: column[row] for name, column in columns.items()}, prompt, completion)
            for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        keys = [hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).digest() for body in bodies]
        new = {key: body for key, body in zip(keys, bodies, strict=True) if key not in self._known}
        answers = self.endpoint.post_all("/chat/completions", list(new.values()))
        replies = dict(zip(new, map(_reply, answers), strict=True))
        read = {key: self.read(reply) for key, reply in replies.items()}
        values = [self._known[key] if key in self._known else read[key] for key in keys]
        self._remember(read, replies)
        return [self.unreadable if value is None else value for value in values]

    def read(self, reply: str | None) -> float | None:
        """The verdict of a reply as a number from 0 to 1; None where there is none, or more than one."""
        lines = [line for line in (reply or "").rpartition("</think>")[2].splitlines() if line.strip()]
        found = [match for line in lines if (match := _VERDICT.fullmatch(line))]
        if not found or not _VERDICT.fullmatch(lines[-1]):
            return None
        values = {float(match[1]) for match in found}
        scales = {float(match[2]) for match in found if match[2]}
        value = values.pop()
        return value / self.best if not values and scales <= {self.best} and 0 <= value <= self.best else None

    def _request(self, row: Mapping[str, Any], prompt: Any, completion: Any) -> Json:
        known = {**row, "prompt": _text(prompt), "completion": text_of(completion)}
        try:
            question = self.template.format_map(known)
        except (KeyError, IndexError) as error:
            raise RewardError(
                f"the judge's template names {error}; the row has {', '.join(sorted(known))}. Double braces that are "
                "meant as such"
            ) from None
        return {
            "model": self.endpoint.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
            **self.options,
        }

    def _remember(self, read: Mapping[bytes, float | None], replies: Mapping[bytes, str | None]) -> None:
        unread = [key for key, value in read.items() if value is None]
        self.num_asked += len(read)
        self.num_unreadable += len(unread)
        self._known |= {key: value for key, value in read.items() if value is not None}
        while len(self._known) > _CACHE_SIZE:
            del self._known[next(iter(self._known))]
        if unread:
            log.warning(
                "%d of %d verdicts of %s could not be read, such as %r; expected a last line 'Verdict: N'",
                *(len(unread), len(read), self.endpoint.model, (replies[unread[0]] or "")[-200:]),
            )


def _reply(answer: Json) -> str | None:
    """What the judge wrote; None if it was cut short or wrote nothing.

    Raises:
        RewardError: the answer is not one of this protocol.
    """
    try:
        (choice,) = answer["choices"]
        reply, reason = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RewardError(
            f"/chat/completions answered {str(answer)[:200]}; expected one choice with a message"
        ) from None
    return reply if isinstance(reply, str) and reason != "length" else None


def _text(prompt: Any) -> str:
    if isinstance(prompt, str) or len(prompt) == 1:
        return text_of(prompt)
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
