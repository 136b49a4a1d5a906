"""How likely an autoregressive model finds a text, asked over HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dllm_rl.errors import RewardError
from dllm_rl.scoring.answers import text_of
from dllm_rl.scoring.endpoint import Endpoint, Json

_NOTHING = -9999.0
"""What vLLM writes for minus infinity, which JSON lacks."""

Prompt = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Teacher:
    """Mean log-probability of a completion's tokens under an autoregressive model; nats per teacher token.

    The policy's token ids are never used: the teacher's server tokenises prompt and completion, apart, and scores the
    two lists of ids joined. So the boundary is exact, and a chat prompt gets the teacher's own template. What follows
    the completion is not scored: neither an end of turn nor an end of text.

    Wrong to use alone: what a teacher finds likely need not be right, and short common phrases are likely.

    Source: the verifier reward of dUltra. Its released option that subtracts scores of two tokenisations is not here.
    """

    endpoint: Endpoint
    """A server with /tokenize beside /v1/completions, as `vllm serve` has; the latter with `echo` and `logprobs`."""
    empty: float = -12.0
    """What an empty completion is worth: as if drawn blindly from 160,000 tokens, so that silence never pays."""
    batch_size: int = 8
    """Completions in one request."""

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> list[float]:
        """One number per completion; at most 0.

        Raises:
            RewardError: the server cannot be reached, refuses, or answers something else than what was asked.
        """
        texts = [text_of(completion) for completion in completions]
        before = self._tokenize([_prompt_request(prompt) for prompt in prompts])
        after = self._tokenize([{"prompt": text, "add_special_tokens": False} for text in texts])
        pairs = [(p, c) for p, c in zip(before, after, strict=True) if c]
        groups = [pairs[start : start + self.batch_size] for start in range(0, len(pairs), self.batch_size)]
        answers = self.endpoint.post_all("/completions", [self._request(group) for group in groups])
        means = iter([m for group, answer in zip(groups, answers, strict=True) for m in _means(group, answer)])
        return [next(means) if ids else self.empty for ids in after]

    def _tokenize(self, requests: Sequence[Json]) -> list[list[int]]:
        """Ids of each text; equal texts are sent once."""
        distinct = {repr(request): request | {"model": self.endpoint.model} for request in requests}
        answers = self.endpoint.post_all("//tokenize", list(distinct.values()))
        ids = {name: _ids(answer) for name, answer in zip(distinct, answers, strict=True)}
        return [ids[repr(request)] for request in requests]

    def _request(self, group: Sequence[tuple[list[int], list[int]]]) -> Json:
        return {
            "model": self.endpoint.model,
            "prompt": [[*prompt, *completion] for prompt, completion in group],
            "echo": True,
            "logprobs": 1,
            "max_tokens": 1,  # some servers refuse 0; what is generated is not read
            "temperature": 0,
        }


def _prompt_request(prompt: Prompt) -> Json:
    if isinstance(prompt, str):
        return {"prompt": prompt, "add_special_tokens": True}
    begun = prompt[-1]["role"] == "assistant"  # the beginning of an answer: the completion goes on with it
    messages = [dict(message) for message in prompt]
    return {"messages": messages, "add_generation_prompt": not begun, "continue_final_message": begun}


def _ids(answer: Json) -> list[int]:
    ids = answer.get("tokens")
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise RewardError(f"/tokenize answered {_excerpt(answer)}; expected a list of integers as 'tokens'")
    return ids


def _means(group: Sequence[tuple[list[int], list[int]]], answer: Json) -> list[float]:
    """Means over the completions of one request.

    Raises:
        RewardError: not one list of log-probabilities for each text, of its length, each at most 0.
    """
    try:
        found = {choice["index"]: choice["logprobs"]["token_logprobs"] for choice in answer["choices"]}
    except (KeyError, TypeError):
        raise RewardError(
            f"/completions answered {_excerpt(answer)}; expected choices with logprobs.token_logprobs, as for echo"
        ) from None
    if len(answer["choices"]) != len(group) or set(found) != set(range(len(group))):
        raise RewardError(f"/completions answered texts {list(found)} of {len(group)}; expected each once")
    return [_mean(len(prompt), len(completion), found[place]) for place, (prompt, completion) in enumerate(group)]


def _mean(num_prompt: int, num_completion: int, logprobs: Any) -> float:
    size = num_prompt + num_completion
    if not isinstance(logprobs, list) or len(logprobs) not in (size, size + 1):  # one more: the token it generated
        length = len(logprobs) if isinstance(logprobs, list) else type(logprobs).__name__
        raise RewardError(f"/completions gave {length} log-probabilities for a text of {size} tokens")
    if num_prompt == 0:
        raise RewardError("a prompt has no tokens for the teacher, so the completion's first has no probability")
    scored = logprobs[num_prompt:size]
    wrong = [value for value in scored if type(value) not in (int, float) or not _NOTHING < value <= 0]
    if wrong:
        raise RewardError(f"/completions gave {wrong[0]!r} as a log-probability; expected numbers from -9998 to 0")
    return math.fsum(scored) / len(scored)


def _excerpt(answer: Json) -> str:
    text = repr(answer)
    return text if len(text) <= 200 else f"{text[:200]}..."
