"""From prompts and a schema to JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from dllm_rl import rng
from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import DataError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.generate_text import prompt_ids
from dllm_rl.rollouts.scaffold import NULL_TEXT, Violation, instruction, scaffold_of
from dllm_rl.rollouts.text import tokenizer_of


@dataclass(frozen=True, slots=True)
class GeneratedJson:
    """A prompt and the JSON that the model completed."""

    prompt: str
    value: Any
    """None where a value of the wrong type was written: see `violations`, or ask for `checked()`."""
    text: str
    """The same as JSON, which it always is."""
    violations: list[Violation]
    """Values that are not what the schema asks for."""
    trajectory: Trajectory
    """Of this row; its completion holds what was literally written."""

    @property
    def forwards(self) -> int:
        """Network evaluations it took."""
        return self.trajectory.nfe[0]

    def checked(self) -> Any:
        """The value.

        Raises:
            DataError: it is not what the schema asks for; every field that is not is named.
        """
        if self.violations:
            wrong = "; ".join(f"{one.path}: found {one.found!r}, expected {one.expected}" for one in self.violations)
            raise DataError(f"what was written for the prompt {self.prompt[:80]!r} does not fit the schema: {wrong}")
        return self.value


def generate_json(
    model: DiffusionModel,
    prompts: Sequence[str],
    schema: Any,
    *,
    sampler: str = "llada",
    steps: int | None = 16,
    block_length: int | None = None,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    cache: str = "none",
    options: Mapping[str, Any] = MappingProxyType({}),
    value_tokens: int = 16,
    null_text: str = NULL_TEXT,
    instruct: bool = True,
    chat: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[GeneratedJson]:
    """Have a model write the values of a JSON skeleton for each prompt; see `scaffold_of` for schemas and source.

    The completion is the skeleton and, if the model has one, an end of sequence, repeated to fill the last block.
    Wrong to use for values whose length cannot be guessed beforehand: what does not fit into its room is not written.

    Args:
        steps: forwards of all blocks together; None is one per token, and for samplers that decide by themselves.
        instruct: put `scaffold.instruction` after each prompt; False when the prompts say it in their own words.

    Raises:
        RecipeError: the schema, the sampler or a setting cannot be used.
        DataError: there are no prompts, or one is empty, or too long together with the skeleton.
        ModelContractError: the model came without a tokenizer or a chat template, or with one that is not exact.
    """
    scaffold = scaffold_of(schema, tokenizer_of(model), value_tokens=value_tokens, null_text=null_text)
    after = f"\n\n{instruction(schema, null_text)}\n" if instruct else ""
    ids = prompt_ids(model, [prompt + after for prompt in prompts], chat)
    template = [*scaffold.template, *_ending(len(scaffold.template), model.spec, block_length)]
    settings = RolloutSettings(
        sampler=sampler,
        gen_length=len(template),
        steps=steps,
        block_length=block_length,
        temperature=temperature,
        cfg_scale=cfg_scale,
        top_p=top_p,
        top_k=top_k,
        cache=cache,
        options=options,
    )
    keys = rng.sample_keys(seed, torch.arange(len(ids)))
    out = LocalEngine(model, settings, batch_size).generate(ids, keys, fixed=[template] * len(ids))
    readings = map(scaffold.read, out.completions)
    return [
        GeneratedJson(prompt, reading.value, reading.text, reading.violations, out.select([row]))
        for row, (prompt, reading) in enumerate(zip(prompts, readings, strict=True))
    ]


def _ending(length: int, spec: DiffusionSpec, block_length: int | None) -> list[int]:
    """Ends of sequence after `length` tokens: at least one, and as many as fill the last block."""
    if not spec.eos_ids:
        return []
    size = spec.block_size or block_length or 1
    return [spec.eos_ids[0]] * (size - length % size)
