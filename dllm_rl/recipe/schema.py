"""What a recipe may say: one frozen model per section. Nothing here, nor what it imports, imports torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dllm_rl.algorithms import AlgorithmSection
from dllm_rl.recipe import fit, upstream
from dllm_rl.recipe.explain import suggestion

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0)]
Options = dict[str, Any]


class Section(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class PlannerSection(Section):
    """A planner head: a logit per position that says whether to write there now."""

    type: Literal["planner"] = "planner"
    initial_logit: float = -2.0
    """Of every position at first; -2 writes one in eight per step."""


class ScheduleSection(Section):
    """A schedule head: a Gaussian policy over how to take the next step."""

    type: Literal["schedule"] = "schedule"
    features: Count | None = None
    """Numbers it is shown at every step; null: as many as the sampler shows."""
    actions: Count | None = None
    """Numbers it decides; null: as many as the sampler's option learned names."""
    width: Count = 64
    """Of its two hidden layers."""


HeadSection = Annotated[PlannerSection | ScheduleSection, Field(discriminator="type")]


class ModelSection(Section):
    """Which weights are trained, and how they are held."""

    path: str
    """Hub id or folder of the model, or a procedural one such as toy:llada."""
    revision: str | None = None
    """Hub commit, tag or branch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; auto: the checkpoint's own."""
    lora: Options | None = None
    """Fields of peft.LoraConfig; null trains every weight."""
    head: HeadSection | None = None
    """A policy head; a new one, unless the weights come with one of that type. Null: only one that they come with."""
    adapter: str | None = None
    """Folder of a LoRA adapter to start from. A reference is a frozen copy of the model with it."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer; null: the model's."""
    attn_implementation: Literal["sdpa", "eager", "flex_attention"] | None = None
    """Attention kernel; null: transformers' choice."""
    quantization: Literal["nf4"] | None = None
    """Four-bit storage of the frozen weights; needs lora."""
    options: Options = {}
    """Arguments of a procedural model such as toy:llada."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.quantization and self.lora is None and self.adapter is None:
            raise ValueError("quantized weights cannot be trained: give model.lora, or drop quantization")
        return self

    @field_validator("lora")
    @classmethod
    def _check_lora(cls, value: Options | None) -> Options | None:
        for key, setting in (value or {}).items():
            _check_option(key, setting, upstream.lora_config(), "peft.LoraConfig")
        return value


class DataSection(Section):
    """Which rows are trained on, and how a row becomes a prompt."""

    path: str
    """Hub id, a local .jsonl, .json, .csv or .parquet file, or a procedural source such as toy:arithmetic."""
    name: str | None = None
    """Configuration of the hub dataset."""
    split: str = "train"
    """Split of the hub dataset."""
    limit: Count | None = None
    """Use only this many rows, the first ones."""
    prompt: str | None = None
    """Template over the columns, such as '{question}'; null: the column prompt is used."""
    system: str | None = None
    """System message put before every prompt."""
    map: str | None = None
    """As file.py:function, from a row (a dict) to the dict of columns that replaces it, or None: no row."""
    max_prompt_length: Count | None = None
    """Tokens a prompt may have; null: what the model's positions allow."""
    max_completion_length: Count | None = None
    """Tokens a completion of the data may have, end of text included; null: what the model's positions allow. In a
    supervised stage, the gen_length of the rollouts to come: what is longer teaches texts that they would cut."""
    overlong: Literal["error", "drop"] = "error"
    """What a longer row does: stop the run, or be left out, counted and logged. Nothing is ever truncated."""
    options: Options = {}
    """Arguments of a procedural source."""


class RewardSection(Section):
    """What a completion is worth: product of gates * speed ** speed_exponent * weighted sum of functions."""

    functions: Annotated[list[str], Field(min_length=1)]
    """Each as file.py:function, a dotted path, or the hub id of a reward model."""
    weights: list[float] | None = None
    """One factor per function; null: 1 each. A function of weight 0 is only reported."""
    gates: list[str] = []
    """Functions whose values, from 0 to 1, multiply the weighted sum."""
    speed_exponent: Share = 0.0
    """alpha of the factor ((T_max - T + 1) / T_max) ** alpha: T forwards of at most T_max = rollout.gen_length;
    a guided step is one, though it costs two."""
    normalization: Literal["none", "per_function"] = "none"
    """per_function: each function's values are normalised within a prompt's group before they are weighted (GDPO)."""
    time_limit: Annotated[float, Field(gt=0)] = 60.0
    """Seconds one call of one function may take."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes, beside each training process, that run the plain functions: one that crashes or hangs there takes
    nothing with it. 0: they run in the training process. Asynchronous functions and reward models always do."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        """`reward: my.py:f` and `reward: [my.py:f, my.py:g]` are short for `functions`."""
        if isinstance(value, str):
            return {"functions": [value]}
        return {"functions": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.functions):
            raise ValueError(f"{len(self.weights)} weights for {len(self.functions)} functions; give one each")
        if self.normalization == "per_function" and (self.gates or self.speed_exponent > 0):
            raise ValueError(
                "normalization per_function makes about half of all totals negative, which gates and speed_exponent "
                "cannot multiply; drop one of the two"
            )
        return self


class DecodingSection(Section):
    """How completions are sampled."""

    sampler: str
    """Name of the preset."""
    gen_length: Count = 256
    """Tokens of a completion."""
    steps: Count | None = None
    """Denoising steps, over all blocks; null: gen_length."""
    block_length: Count | None = None
    """Tokens denoised together before the next block; null: gen_length."""
    temperature: Share
    """Of the token distribution; 0 is greedy."""
    cfg_scale: Share = 0.0
    """Classifier-free guidance; 0 is none. A guided step costs two evaluations and counts as one forward everywhere."""
    options: Options = {}
    """Further arguments of the preset."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_caches(cls, value: Any) -> Any:
        """Exact ones need a block-causal model, which a recipe does not tell; the others are never exact."""
        if isinstance(value, dict) and "cache" in value:
            raise _option_error(
                "cache",
                "not set here: through an approximate cache a rollout's recorded likelihood is not the model's own, so "
                "recipes make every forward whole; dllm-rl generate and eval take --cache",
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        block = self.block_length or self.gen_length
        blocks, rest = divmod(self.gen_length, block)
        if rest:
            raise ValueError(f"gen_length {self.gen_length} is not a multiple of block_length {block}")
        if (self.steps or self.gen_length) % blocks:
            raise ValueError(f"steps {self.steps} cannot be shared equally by {blocks} blocks of {block} tokens")
        return self


class RolloutSection(DecodingSection):
    """How completions are sampled to be learned from."""

    num_generations: Annotated[int, Field(ge=2)] = 8
    """Completions per prompt: the group whose rewards are compared."""
    sampler: str = "rl"
    """Name of the preset; rl is the one whose likelihood is exact."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the token distribution; greedy rollouts would all be the same."""
    batch_size: Count | None = None
    """Completions per forward; null: all of the update's on this process."""


class EvalSection(DecodingSection):
    """What is measured before, after and during training."""

    tasks: Annotated[list[str], Field(min_length=1)]
    """Names of shipped tasks, such as gsm8k, or files, such as eval/gsm8k.py."""
    every: Annotated[int, Field(ge=0)] = 0
    """Updates between evaluations; 0: only before and after training."""
    prompt: str | None = None
    """Variant of the tasks' prompts, such as d1; null: each task's own."""
    limit: Count | None = None
    """Use only this many rows of a task, the first ones."""
    path: str | None = None
    """Local file of rows; for a single task."""
    paths: dict[str, str] = {}
    """Local files of rows, by task."""
    sampler: str = "llada"
    """Name of the preset."""
    temperature: Share = 0.0
    """Of the token distribution; 0 is greedy."""
    batch_size: Count = 64
    """Completions per forward."""

    @model_validator(mode="after")
    def _check_paths(self) -> Self:
        if self.path is not None and (len(self.tasks) > 1 or self.paths):
            raise ValueError("path serves a single task; use paths: {task: file} alone")
        if unknown := sorted(set(self.paths) - set(self.tasks)):
            raise ValueError(f"paths names {unknown[0]}, which is not among the tasks: {', '.join(self.tasks)}")
        return self


class TrainSection(Section):
    """The optimisation. Every other key is a field of transformers.TrainingArguments, passed on as it is."""

    model_config = ConfigDict(extra="allow")

    _elsewhere: ClassVar[dict[str, str]] = {
        "output_dir": "the top-level key output says where the run writes",
        "eval_strategy": "eval.every says when the run evaluates",
        "eval_steps": "eval.every says when the run evaluates",
        "eval_on_start": "a run with an eval section always evaluates before its first update",
        "save_only_model": "a run could not go on from such a checkpoint",
        "neftune_noise_alpha": "noise in training passes only would make the ratio differ from 1 by itself",
        "label_smoothing_factor": "the loss is the algorithm's",
        "auto_find_batch_size": "results must not depend on the machine; lower views_per_forward instead",
        "remove_unused_columns": "reward functions see every column",
        "enable_jit_checkpoint": "a run stops on SIGTERM by itself, where it can be gone on with exactly",
        "disable_tqdm": "the run has a bar of its own",
        "ignore_data_skip": "which rows an update sees does not depend on a data loader",
        "logging_nan_inf_filter": "a loss that is not finite ends the run",
    }

    views_per_forward: Count = 8
    """Noised copies scored by one forward; lower it when memory runs out, results do not change."""
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Of a policy head; null: learning_rate."""
    stuck_after: Annotated[float, Field(gt=0)] | None = None
    """Seconds without a forward on any process after which the run ends, with what each process was doing; longer than
    a checkpoint, a compilation and all reward functions take. Null: 1800, or twice the reward functions' limits."""
    stop_at_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradient norm, before clipping, above which the run stops and saves the rows; null: none that is finite."""
    stop_at_log_ratio: Annotated[float, Field(gt=0)] | None = None
    """Likewise the absolute log-ratio of one token under the policy and under the weights that wrote it, nats."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What goes to transformers.TrainingArguments."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _check(self) -> Self:
        own = dict.fromkeys(type(self).model_fields, "float") | {"views_per_forward": "int"}
        known = upstream.training_arguments() | own
        for key, value in self.arguments.items():
            if key in self._elsewhere:
                raise _option_error(key, f"not set here: {self._elsewhere[key]}")
            _check_option(key, value, known, "transformers.TrainingArguments, and views_per_forward")
        return self


class Recipe(Section):
    """One run, from weights and rows to a trained model."""

    algorithm: AlgorithmSection
    """The method, by its type, and its settings."""
    model: ModelSection
    """Which weights are trained, and how they are held."""
    data: DataSection
    """Which rows are trained on, and how a row becomes a prompt."""
    reward: RewardSection | None = None
    """What a completion is worth; for methods that sample."""
    rollout: RolloutSection | None = None
    """How completions are sampled to be learned from; for methods that sample."""
    train: TrainSection = TrainSection()
    """The optimisation."""
    eval: EvalSection | None = None
    """What is measured before, after and during training."""
    output: str
    """Folder the run writes; one run per folder."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        name, samples = self.algorithm.type, self.algorithm.source == "rollouts"
        for section, wanted in (("reward", samples and self.algorithm.needs_reward), ("rollout", samples)):
            if (getattr(self, section) is not None) != wanted:
                source = "what a sampler does, whatever it is worth" if samples else self.algorithm.source
                verb = "samples its data: add" if wanted else f"learns from {source}: remove"
                raise ValueError(f"{section}: {name} {verb} this section")
        judges_more = self.algorithm.judges_steps or self.algorithm.inpainting is not None
        if self.reward and self.reward.normalization != "none" and judges_more:
            raise ValueError(
                f"reward.normalization: {name} judges more than one completion per rollout, and per_function compares "
                "the rollouts of a prompt; remove it"
            )
        if samples and self.data.max_completion_length is not None:
            raise ValueError(f"data.max_completion_length: {name} writes its completions; rollout.gen_length says it")
        hints = self.algorithm.inpainting
        if hints is not None and self.reward is not None and self.reward.speed_exponent > 0:
            raise ValueError(
                f"reward.speed_exponent: hinted completions of {name} need fewer forwards, so they would be paid for "
                "their hints; remove it"
            )
        if hints is not None and self.reward is not None and self.rollout is not None:
            hints.correct_index(self.reward.functions)
            hints.most_replaced(self.rollout.num_generations)
        if (self.model.lora or {}).get("lora_dropout", 0) > 0 and not self.algorithm.allows_dropout:
            raise ValueError(
                f"model.lora.lora_dropout: must be 0 for {name}, which compares scores of one text made at different "
                "times; dropout would make them differ by themselves"
            )
        if self.train.head_learning_rate is not None and self.algorithm.head is None:
            raise ValueError(f"train.head_learning_rate: {name} trains no policy head; remove it")
        if self.train.stop_at_log_ratio is not None and not self.algorithm.needs_behaviour:
            raise ValueError(
                f"train.stop_at_log_ratio: {name} does not compare with the weights that wrote a rollout; remove it"
            )
        if self.stuck_after < self.seconds_of_rewards:
            raise ValueError(
                f"train.stuck_after: found {self.stuck_after:g} s, and the reward functions may take "
                f"{self.seconds_of_rewards:g} s together (reward.time_limit each), in which no forward is made; raise "
                "it or lower reward.time_limit"
            )
        fit.check_samplers(self)
        return self

    @property
    def seconds_of_rewards(self) -> float:
        """What the reward functions of one rollout may take, one after another."""
        if self.reward is None:
            return 0.0
        judgements = 2 if self.algorithm.judges_steps else 1
        return judgements * self.reward.time_limit * len(self.reward.functions + self.reward.gates)

    @property
    def stuck_after(self) -> float:
        """`train.stuck_after`, or what stands for it."""
        given = self.train.stuck_after
        return max(1800.0, 2 * self.seconds_of_rewards) if given is None else given


def _check_option(key: str, value: object, known: dict[str, str], owner: str) -> None:
    """Refuse a key that `owner` does not have, or a plainly wrong value."""
    if key not in known:
        raise _option_error(key, f"unknown key.{suggestion(key, known)} Keys: those of {owner}")
    if not upstream.accepts(known[key], value):
        raise _option_error(key, f"found {value!r}, expected {known[key]}")


def _option_error(key: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("option", "{message}", {"key": key, "message": message})
