"""Our models as a language model of lm-eval, so that any of its tasks can be run. The extra `eval` installs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from dllm_rl.diffusion.likelihood import elbo
from dllm_rl.errors import DataError, RecipeError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.rng import sample_keys
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.text import decode_until_eos, encode_prompt, tokenizer_of
from dllm_rl.samplers.canvas import refuse_overlong

try:
    from lm_eval.api.model import LM
except ImportError:
    LM = object


def require() -> None:
    """Stop where lm-eval is not installed.

    Raises:
        RecipeError: it is not.
    """
    if LM is object:
        raise RecipeError("lm-eval is not installed; pip install 'dllm-rl[eval]'")


class DiffusionLM(LM):  # type: ignore[misc]
    """A diffusion language model behind lm-eval's interface.

    Log-likelihoods are evidence lower bounds, estimated: right for ranking answers of one length, not comparable with
    exact log-likelihoods of other models, nor to be read as perplexities.

    Args:
        settings: how `generate_until` samples. What tasks ask for of length, temperature or beams is not followed;
            their stop strings are.
        num_draws: views per log-likelihood.
        batch_size: prompts, or views, per forward.
        seed: of all draws. Answers to one question share theirs.

    Raises:
        RecipeError: lm-eval is not installed.
        ModelContractError: the model came without a tokenizer.

    Source: the interface of https://github.com/EleutherAI/lm-evaluation-harness, 0.4.13; likelihoods as Nie et al.,
    https://arxiv.org/abs/2502.09992, appendix B.5, with 128 draws.
    """

    def __init__(
        self,
        model: DiffusionModel,
        settings: RolloutSettings,
        *,
        num_draws: int = 128,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        require()
        super().__init__()
        self.model, self.settings = model, settings
        self.num_draws, self.batch_size, self.seed = num_draws, batch_size, seed
        self.tokenizer = tokenizer_of(model)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template that a task's messages go through; "" for none."""
        return str(self.tokenizer.chat_template) if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the text that the model continues."""
        if not self.tokenizer.chat_template:
            raise DataError("the tokenizer has no chat template; leave --apply-chat-template out")
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Text after each context, up to the first end of text or stop string."""
        engine, decode = LocalEngine(self.model, self.settings), decode_until_eos(self.model)
        texts: list[str] = []
        for places in _batches(len(requests), self.batch_size):
            prompts = [encode_prompt(self.tokenizer, requests[place].args[0]) for place in places]
            out = engine.generate(prompts, sample_keys(self.seed, torch.tensor(places)))
            for place, ids in zip(places, out.completions, strict=True):
                texts.append(_cut(decode(ids), requests[place].args[1].get("until", ())))
                self.cache_hook.add_partial("generate_until", requests[place].args, texts[-1])
        return texts

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The bound of each continuation after its context, nats, and whether greedy decoding writes it."""
        pairs = [self.split(*request.args) for request in requests]
        values = self._bounds(pairs, [request.doc_id for request in requests])
        found = list(zip(values, self._greedy(pairs), strict=True))
        for request, each in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, each)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The bound of each whole text, nats; of a text too long for the model, the sum over pieces that are not."""
        totals = []
        for request in requests:
            ids = self._ids(request.args[0])
            room = self.model.max_positions or len(ids)
            pieces: list[tuple[list[int], list[int]]] = [
                ([], ids[start : start + room]) for start in range(0, len(ids), room)
            ]
            totals.append(sum(self._bounds(pieces, [request.doc_id] * len(pieces))))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both parts. White space between them belongs to the continuation, and so does a token across them.

        Raises:
            DataError: the continuation is empty.
        """
        kept = context.rstrip()
        continuation, context = context[len(kept) :] + continuation, kept
        first, whole = self._ids(context), self._ids(context + continuation)
        rest = whole[len(first) :] if whole[: len(first)] == first else self._ids(continuation)
        if not rest:
            raise DataError(f"an empty continuation of {context[-80:]!r}; expected some text to score")
        return first, rest

    def _ids(self, text: str) -> list[int]:
        return encode_prompt(self.tokenizer, text)

    def _bounds(self, pairs: Sequence[tuple[list[int], list[int]]], sample_ids: Sequence[int]) -> list[float]:
        values: list[float] = []
        for places in _batches(len(pairs), self.batch_size):
            contexts, continuations = zip(*(pairs[place] for place in places), strict=True)
            refuse_overlong(self.model, [a + b for a, b in zip(contexts, continuations, strict=True)], 0)
            estimate = elbo(
                self.model,
                contexts,
                continuations,
                num_draws=self.num_draws,
                seed=self.seed,
                sample_ids=[sample_ids[place] for place in places],
                views_per_forward=self.batch_size,
            )
            values += estimate.value.tolist()
        return values

    def _greedy(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[bool]:
        """Whether each continuation is what one-by-one greedy decoding of that many tokens writes."""
        by_length = sorted(range(len(pairs)), key=lambda place: len(pairs[place][1]))
        found = [False] * len(pairs)
        for length, group in groupby(by_length, key=lambda place: len(pairs[place][1])):
            places = list(group)
            settings = RolloutSettings(sampler="llada", gen_length=length, temperature=0.0)
            engine = LocalEngine(self.model, settings, self.batch_size)
            out = engine.generate([pairs[place][0] for place in places], torch.zeros(len(places), dtype=torch.int64))
            for place, ids in zip(places, out.completions, strict=True):
                found[place] = ids == pairs[place][1]
        return found


def _batches(count: int, size: int) -> Iterator[list[int]]:
    return (list(range(start, min(start + size, count))) for start in range(0, count, size))


def _cut(text: str, stops: str | Sequence[str]) -> str:
    """Text before the first of the stop strings."""
    strings = [stops] if isinstance(stops, str) else [stop for stop in stops if stop]
    return text[: min((at for stop in strings if (at := text.find(stop)) >= 0), default=len(text))]


def run_lm_eval(
    language_model: DiffusionLM,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    allow_unsandboxed: bool = False,
) -> dict[str, Any]:
    """Run tasks of lm-eval.

    Args:
        include_path: folder with tasks of one's own.
        allow_unsandboxed: let tasks run the code they are answered, as lm-eval does it: in this process, with the
            rights of this user. Our own humaneval and mbpp tasks need no such thing.

    Returns:
        lm-eval's results.

    Raises:
        RecipeError: lm-eval knows no such task, or one runs code and that was not allowed.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise RecipeError(f"lm-eval {version('lm-eval')} has no task {unknown[0]!r}; `lm-eval ls tasks` lists them")
    try:
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model=language_model,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            confirm_run_unsafe_code=allow_unsandboxed,
        )
    except ValueError as error:
        if "unsafe" not in str(error):
            raise
        raise RecipeError(f"a task runs code, unprotected; allow it with --allow-unsandboxed ({error})") from error
    return results


def lines_of(results: Mapping[str, Any]) -> list[str]:
    """A line for every number of lm-eval's results; `metric,filter` is its name of one."""
    lines = []
    for task, numbers in results["results"].items():
        for name, value in numbers.items():
            metric, _, chosen = name.partition(",")
            if not chosen or metric.endswith("_stderr"):
                continue
            error = numbers.get(f"{metric}_stderr,{chosen}")
            spread = f" +- {error:.4f}" if isinstance(error, float) else ""
            count = results["n-samples"].get(task, {}).get("effective", "")
            by = "" if chosen == "none" else f" ({chosen})"
            lines.append(f"{task} v{results['versions'].get(task, '')}: {metric}{by} {value:.4f}{spread} (n {count})")
    return lines
