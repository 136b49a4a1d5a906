"""From prompts and a schema to JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import DataError, RecipeError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.rollouts.engine import RolloutSettings
from dllm_rl.rollouts.generate_text import Completed, complete
from dllm_rl.rollouts.json_schema import VALUE_TOKENS
from dllm_rl.rollouts.scaffold import NULL_TEXT, Violation, instruction, scaffold_of
from dllm_rl.rollouts.text import Prompt, prompt_text, tokenizer_of
from dllm_rl.samplers.canvas import Template


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

    @property
    def record(self) -> dict[str, Any]:
        """What a file of completions holds about it."""
        return {
            "prompt": self.prompt,
            "completion": self.text,
            "finished": True,
            "forwards": self.forwards,
            "violations": [asdict(one) for one in self.violations],
        }

    def checked(self) -> Any:
        """The value.

        Raises:
            DataError: it is not what the schema asks for; every field that is not is named.
        """
        if self.violations:
            wrong = "; ".join(map(str, self.violations))
            raise DataError(f"what was written for the prompt {self.prompt[:80]!r} does not fit the schema: {wrong}")
        return self.value


class Completer(Protocol):
    """`complete`, or something that does the same and shows it."""

    def __call__(
        self,
        model: DiffusionModel,
        prompts: Sequence[Prompt],
        settings: RolloutSettings,
        *,
        chat: bool,
        seed: int,
        batch_size: int | None,
        fixed: Template,
    ) -> Completed: ...


def generate_json(
    model: DiffusionModel,
    prompts: Sequence[Prompt],
    schema: Any,
    *,
    sampler: str = "llada",
    steps: int | None = None,
    block_length: int | None = None,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    cache: str = "none",
    options: Mapping[str, Any] = MappingProxyType({}),
    value_tokens: int = VALUE_TOKENS,
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
        prompts: texts or chat messages.
        steps: forwards of all blocks together, 16 in the paper; None for one per token, and for samplers that decide
            by themselves.
        instruct: put `scaffold.instruction` after each prompt; False when the prompts say it in their own words.

    Raises:
        RecipeError: the schema, the sampler or a setting cannot be used.
        DataError: there are no prompts, or one is empty, or too long together with the skeleton.
        ModelContractError: the model came without a tokenizer or a chat template, or with one that is not exact.
    """
    settings = RolloutSettings(
        sampler=sampler,
        steps=steps,
        block_length=block_length,
        temperature=temperature,
        cfg_scale=cfg_scale,
        top_p=top_p,
        top_k=top_k,
        cache=cache,
        options=options,
    )
    return complete_json(
        model,
        prompts,
        schema,
        settings,
        value_tokens=value_tokens,
        null_text=null_text,
        instruct=instruct,
        chat=chat,
        seed=seed,
        batch_size=batch_size,
    )[0]


def complete_json(
    model: DiffusionModel,
    prompts: Sequence[Prompt],
    schema: Any,
    settings: RolloutSettings,
    run: Completer = complete,
    *,
    value_tokens: int = VALUE_TOKENS,
    null_text: str = NULL_TEXT,
    instruct: bool = True,
    chat: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
) -> tuple[list[GeneratedJson], Completed]:
    """As `generate_json`; also how it came to be, of the prompts as the model saw them.

    Args:
        settings: but for `gen_length`, which is the skeleton's.
    """
    if settings.stop_at_eos:
        raise RecipeError("stop_at_eos is set, and a skeleton is written to its end; leave it out")
    scaffold = scaffold_of(schema, tokenizer_of(model), value_tokens=value_tokens, null_text=null_text)
    template = [*scaffold.template, *_ending(len(scaffold.template), model.spec, settings.block_length)]
    texts = [prompt_text(prompt) for prompt in prompts]
    if "" in (blank := [text.strip() for text in texts]):
        raise DataError(f"prompt {blank.index('')} is empty; expected some text")
    after = f"\n\n{instruction(schema, null_text)}\n" if instruct else ""
    done = run(
        model,
        [_followed(prompt, after) for prompt in prompts],
        replace(settings, gen_length=len(template)),
        chat=chat,
        seed=seed,
        batch_size=batch_size,
        fixed=template,
    )
    readings = map(scaffold.read, done.trajectory.completions)
    rows = [
        GeneratedJson(text, reading.value, reading.text, reading.violations, done.trajectory.select([row]))
        for row, (text, reading) in enumerate(zip(texts, readings, strict=True))
    ]
    return rows, done


def _followed(prompt: Prompt, after: str) -> Prompt:
    """The prompt with more text at its end, which is that of the last message."""
    if isinstance(prompt, str):
        return prompt + after
    *before, last = prompt
    return [*before, {**last, "content": last["content"] + after}]


def _ending(length: int, spec: DiffusionSpec, block_length: int | None) -> list[int]:
    """Ends of sequence after `length` tokens: at least one, and as many as fill the last block."""
    if not spec.eos_ids:
        return []
    size = spec.block_size or block_length or 1
    return [spec.eos_ids[0]] * (size - length % size)
