"""How something was measured: printed with every result and stored with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dllm_rl.evaluation.task import Questions, variant_of

if TYPE_CHECKING:
    from dllm_rl.rollouts.engine import RolloutSettings


@dataclass(frozen=True, slots=True)
class EvalProtocol:
    """All that a result depends on. Results compare when they differ in nothing but the model."""

    task: str
    task_version: int
    prompt: str
    """Name of the prompt's variant."""
    num_examples: int
    data: str
    """Digest of the examples."""
    samples: int
    """Answers to each example."""
    model: str
    """As it was named."""
    revision: str
    """Which weights; see `revision_of`."""
    dtype: str
    """Of the weights, as asked for."""
    sampler: str
    gen_length: int
    steps: int
    """Over all blocks."""
    block_length: int
    temperature: float
    cfg_scale: float
    top_p: float | None
    top_k: int | None
    stop_at_eos: bool
    cache: str
    options: Mapping[str, Any]
    """Of the sampler."""
    seed: int

    def line(self) -> str:
        """One line for people."""
        options = "".join(f", {name}={value}" for name, value in self.options.items())
        extras = {"cfg": self.cfg_scale or None, "top-p": self.top_p, "top-k": self.top_k}
        extra = "".join(f", {name} {value:g}" for name, value in extras.items() if value is not None)
        end = "stops with the block that holds an end of text" if self.stop_at_eos else "whole canvas"
        samples = f", {self.samples} samples each" if self.samples > 1 else ""
        cache = "" if self.cache == "none" else f", cache {self.cache}"
        return " | ".join(
            (
                f"{self.task} v{self.task_version}, prompt {self.prompt}, {self.num_examples} examples ({self.data})"
                + samples,
                f"{self.model} @ {self.revision}, {self.dtype}",
                f"sampler {self.sampler}{options}, length {self.gen_length}, steps {self.steps}, block "
                f"{self.block_length}, temperature {self.temperature:g}{extra}{cache}, seed {self.seed}",
                f"{end}, text up to the first end of text",
            )
        )

    def as_dict(self) -> dict[str, Any]:
        """For files."""
        return asdict(self)

    def differences(self, other: EvalProtocol, *, but: Sequence[str] = ("model",)) -> list[str]:
        """What is not the same, each as "name is A there, B here" with the other's value as A."""
        here, there = asdict(self), asdict(other)
        return [
            f"{name} is {there[name]!r} there, {here[name]!r} here"
            for name in here
            if name not in but and here[name] != there[name]
        ]


def protocol_of(
    questions: Questions,
    *,
    samples: int,
    model: str,
    revision: str,
    dtype: str,
    settings: RolloutSettings,
    seed: int,
) -> EvalProtocol:
    """The protocol of questions that are answered with these settings."""
    return EvalProtocol(
        task=questions.task.name,
        task_version=questions.task.version,
        prompt=variant_of(questions.task),
        num_examples=len(questions),
        data=digest_of(questions.examples),
        samples=samples,
        model=model,
        revision=revision,
        dtype=dtype,
        sampler=settings.sampler,
        gen_length=settings.gen_length,
        steps=settings.steps or settings.gen_length,
        block_length=settings.block_length or settings.gen_length,
        temperature=settings.temperature,
        cfg_scale=settings.cfg_scale,
        top_p=settings.top_p,
        top_k=settings.top_k,
        stop_at_eos=settings.stop_at_eos,
        cache=settings.cache,
        options=dict(settings.options),
        seed=seed,
    )


def digest_of(examples: Sequence[Mapping[str, Any]]) -> str:
    """Short name of the rows, which another row, or another order, changes."""
    digest = hashlib.blake2b(digest_size=6)
    for example in examples:
        digest.update(json.dumps(dict(example), sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()
