"""Questions to an engine, completions to scores: one record per answer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from dllm_rl.evaluation.metrics import Record
from dllm_rl.evaluation.task import Questions
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.rng import sample_keys
from dllm_rl.rollouts.engine import RolloutEngine
from dllm_rl.rollouts.text import decode_until_eos, encode_prompt, prompt_text
from dllm_rl.scoring.pool import POOL_SIZE

Item = tuple[int, int]
"""An answer that is wanted: place of the example, number of the sample."""


def answer(
    engine: RolloutEngine, model: DiffusionModel, questions: Questions, items: Sequence[Item], seed: int
) -> list[Record]:
    """Let an engine answer, and score what it wrote.

    Args:
        model: its tokenizer encodes prompts (by its chat template if it has one) and decodes completions, up to the
            first end-of-text id.
        items: in the order of the records. They make one call of the engine.
        seed: an item is answered with the key of (seed, its id), whatever else is asked in the same call.

    Raises:
        DataError: a prompt cannot be used.
        ModelContractError: the model came without a tokenizer.
    """
    decode, ends = decode_until_eos(model), frozenset(model.spec.eos_ids)
    prompts = [encode_prompt(model.tokenizer, questions.prompts[index]) for index, _ in items]
    written = engine.generate(prompts, sample_keys(seed, torch.tensor([sample_id(item) for item in items])))
    completions = written.completions
    lengths = [next((i for i, token in enumerate(ids) if token in ends), len(ids)) for ids in completions]
    counts: list[int | None] = [None] * len(items)
    if engine.returns_trajectory:
        counts = list((~written.given).sum(dim=1).tolist())
    return judge(questions, items, list(map(decode, completions)), written.nfe, counts, lengths)


def sample_id(item: Item) -> int:
    """What an answer's random numbers are made from: the example's place, for the first sample of each."""
    index, sample = item
    return index + (sample << 32)


def judge(
    questions: Questions,
    items: Sequence[Item],
    texts: Sequence[str],
    nfe: Sequence[int | None],
    tokens: Sequence[int | None],
    lengths: Sequence[int | None],
) -> list[Record]:
    """Score completions in parallel; the order is kept."""

    def one(item: Item, text: str, forwards: int | None, count: int | None, length: int | None) -> Record:
        index, sample = item
        score = questions.task.score(questions.examples[index], text)
        prompt = prompt_text(questions.prompts[index])
        return Record(
            index, prompt, text, score.answer, score.value, score.explanation, forwards, sample, count, length
        )

    with ThreadPoolExecutor(POOL_SIZE) as threads:
        return list(threads.map(one, items, texts, nfe, tokens, lengths))
