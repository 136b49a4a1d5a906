"""The output head that scores tokens piece by piece, and the forward that reaches it through any wrapper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dllm_rl.diffusion.denoiser import TokenScores
from dllm_rl.diffusion.transform import Transform, guide
from dllm_rl.errors import ModelContractError
from dllm_rl.models.chosen import chosen_logp
from dllm_rl.models.policy_head import HEADS, POLICY_HEAD, attach_head
from dllm_rl.models.prefixes import SharedKeys

ROWS_PER_CHUNK = 512
"""Rows of whole logits alive at once, where they are needed: 0.26 GB of float32 with LLaDA's vocabulary."""
ROWS_PER_CHUNK_ON_CPU = 128
"""Fewer where products of matrices gain nothing from more rows. Not fewer still: below 32 MiB, a chunk of LLaDA's
logits would come from the C library's heap, which keeps what was freed (docs/performance.md).
"""


class TokenHead(nn.Linear):
    """An output head that gives logits, or the log-probabilities of chosen tokens without ever holding all logits.

    Whatever goes over the logits piece by piece does so inside this module, not around it: sharded training gathers the
    weight once per call of a module, and ranks with different numbers of pieces must make equally many calls.
    """

    rows_per_chunk: int | None = None
    """None: ROWS_PER_CHUNK of the device."""

    def forward(  # type: ignore[override]
        self,
        hidden: Float[Tensor, "*rows H"],
        tokens: Int64[Tensor, " T"] | None = None,
        transform: Transform | None = None,
        unconditional: Float[Tensor, "U H"] | None = None,
        entropy: bool = False,
        *,
        place: Int64[Tensor, " T"] | None = None,
        temperature: Float64[Tensor, " T"] | None = None,
        cfg_scale: Float64[Tensor, " T"] | None = None,
    ) -> Tensor | TokenScores:
        """Logits of every row, or TokenScores of shape [T] when `tokens` are given.

        Args:
            unconditional: hidden states of the guidance pass; given exactly when something guides.
            place: which of U hidden states each token is asked of; None: one each.
            temperature, cfg_scale: of each token's distribution, in place of the transform's.
        """
        if tokens is None:
            return self._logits(hidden)
        if place is not None and (temperature is not None or cfg_scale is not None):
            hidden, unconditional = _rows(hidden, place), None if unconditional is None else _rows(unconditional, place)
            place = None
        transform = transform or Transform()
        hidden = _scaled(self._wide(hidden), unconditional, transform, temperature, cfg_scale)
        place = torch.arange(len(tokens), device=tokens.device) if place is None else place
        if entropy or transform.truncates:
            return self._score_in_chunks(_rows(hidden, place), tokens, replace(transform, temperature=1.0), entropy)
        return TokenScores(chosen_logp(hidden, self.weight, place, tokens, transform.forbidden_ids), None)

    def _wide(self, hidden: Float[Tensor, "*rows H"]) -> Float[Tensor, "*rows H"]:
        """At least float32, whatever the weights are in.

        A logit rounded to bfloat16 is off by up to 0.06 nats, many times what an update moves it by.
        """
        return hidden.to(torch.promote_types(self.weight.dtype, torch.float32))

    def _logits(self, hidden: Float[Tensor, "*rows H"]) -> Float[Tensor, "*rows V"]:
        """Logits computed in at least float32, whatever autocast would do."""
        hidden = self._wide(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden, self.weight.to(hidden.dtype))

    def _score_in_chunks(
        self, hidden: Float[Tensor, "T H"], tokens: Int64[Tensor, " T"], transform: Transform, entropy: bool
    ) -> TokenScores:
        """What needs all logits of a row, some rows at a time, recomputed in the backward pass."""
        size = self.rows_per_chunk or (ROWS_PER_CHUNK_ON_CPU if hidden.device.type == "cpu" else ROWS_PER_CHUNK)
        scores = [
            checkpoint(self._score_rows, *rows, transform, entropy, use_reentrant=False, preserve_rng_state=False)
            for rows in zip(torch.split(hidden, size), torch.split(tokens, size), strict=True)
        ]
        logp, entropies = (torch.cat(parts) for parts in zip(*scores, strict=True))
        return TokenScores(logp, entropies if entropy else None)

    def _score_rows(
        self, hidden: Float[Tensor, "T H"], tokens: Int64[Tensor, " T"], transform: Transform, entropy: bool
    ) -> tuple[Float[Tensor, " T"], Float[Tensor, " E"]]:
        log_probs = transform.scaled_(self._logits(hidden)).log_softmax(1)
        logp = log_probs.gather(1, tokens[:, None])[:, 0]
        return logp, entropy_of(log_probs) if entropy else logp[:0]


def _rows(hidden: Float[Tensor, "U H"], place: Int64[Tensor, " T"]) -> Float[Tensor, "T H"]:
    """Rows, some of them repeated. As an embedding, whose gradient is added up in a fixed order on every device."""
    return nn.functional.embedding(place, hidden)


def _scaled(
    hidden: Float[Tensor, "U H"],
    unconditional: Float[Tensor, "U H"] | None,
    transform: Transform,
    temperature: Float64[Tensor, " U"] | None,
    cfg_scale: Float64[Tensor, " U"] | None,
) -> Float[Tensor, "U H"]:
    """Hidden states whose logits are guided and divided by the temperature: logits are linear in them."""
    if unconditional is not None:
        scale = transform.cfg_scale if cfg_scale is None else cfg_scale[:, None]
        hidden = guide(hidden, unconditional.to(hidden.dtype), scale)
    if temperature is not None:
        return hidden / temperature[:, None].to(hidden.dtype)
    transform.refuse_greedy()
    return hidden if transform.temperature == 1 else hidden / transform.temperature


class ScoresRows:
    """Mix-in before a Hugging Face causal model: its output head is a `TokenHead`, and its forward can do chosen rows.

    It goes through `forward` so that data-parallel and sharding wrappers, which hook it, see every pass.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Policy heads are small, and their probabilities are to be exact.
        family = getattr(cls, "_keep_in_fp32_modules_strict", None)
        cls._keep_in_fp32_modules_strict = {*(family or ()), *HEADS}  # type: ignore[attr-defined]

    def __init__(self, config: Any) -> None:
        named = (config.architectures or [config.architecture])[0]
        if named != config.architecture:  # two families share a model type, all that the Auto classes look at
            raise ModelContractError(
                f"the configuration names the architecture {named!r}, and {type(self).__name__} is for "
                f"{config.architecture!r}. Load the folder with dllm_rl.load_model, which chooses by architecture"
            )
        super().__init__(config)  # type: ignore[call-arg]
        self.lm_head = TokenHead(config.hidden_size, config.vocab_size, bias=False)
        # The embedding of a declared padding id gets no gradient. These models pad with their EOS, which must learn.
        self.model.embed_tokens.padding_idx = None  # type: ignore[attr-defined]
        self.post_init()  # type: ignore[attr-defined]
        if getattr(config, POLICY_HEAD, None):
            attach_head(self, getattr(config, POLICY_HEAD))  # after post_init, which would draw its weights anew

    @classmethod
    def can_generate(cls) -> bool:
        """No: left-to-right generation is meaningless here."""
        return False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        *,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        rows: Int64[Tensor, " U"] | None = None,
        tokens: Int64[Tensor, " T"] | None = None,
        place: Int64[Tensor, " T"] | None = None,
        transform: Transform | None = None,
        unconditional_ids: Tensor | None = None,
        entropy: bool = False,
        temperature: Float64[Tensor, " T"] | None = None,
        cfg_scale: Float64[Tensor, " T"] | None = None,
        open: Bool[Tensor, "B N"] | None = None,
        time: Float[Tensor, " B"] | None = None,
        features: Float[Tensor, "R F"] | None = None,
        **kwargs: Any,  # the framework's own signature: untouched when no rows are asked for
    ) -> Any:
        """The parent's forward; with `rows` (flat indices into [B * N]) logits there; with `tokens` too, TokenScores.

        With `open` as well, a pair: the same and the planner's logits [B, N]. With `features`, the schedule's means
        alone: the network is not run.

        Args:
            past_key_values: a transformers `Cache`, which keeps the keys and values of this pass; with `rows` there is
                no other way to have any kept, whatever the configuration says.
            use_cache: as in transformers; with `rows` it says nothing that `past_key_values` does not.
            place: which of the rows each token is asked of; None: one each.
            unconditional_ids: the canvas of the guidance pass, prompt hidden.
            temperature, cfg_scale: of each token's distribution, in place of the transform's.
            open, time: see `PlannerHead`.

        Raises:
            ModelContractError: for a guidance pass through the same cache.
        """
        if features is not None:
            return self.schedule(features)  # type: ignore[attr-defined]
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": past_key_values}
        if rows is None:
            return super().forward(input_ids=input_ids, use_cache=use_cache, **inputs, **kwargs)  # type: ignore[misc]
        if past_key_values is not None and unconditional_ids is not None:
            raise ModelContractError(
                "got past_key_values and unconditional_ids; one cache cannot keep the keys of two canvases. "
                "Run the guidance pass by itself, with a cache of its own"
            )

        blind = None if unconditional_ids is None else self._hidden(unconditional_ids, inputs).flatten(0, 1)[rows]
        hidden = self._hidden(input_ids, inputs)
        own = {"temperature": temperature, "cfg_scale": cfg_scale}
        scores = self.lm_head(hidden.flatten(0, 1)[rows], tokens, transform, blind, entropy, place=place, **own)
        if open is None:
            return scores
        return scores, self.planner(hidden, open, time, attention_mask, position_ids)  # type: ignore[attr-defined]

    def _hidden(self, ids: Tensor | None, inputs: dict[str, Any]) -> Float[Tensor, "B N H"]:
        for layer in self.model.layers:  # type: ignore[attr-defined]
            # Layers under activation checkpointing drop a cache, since most would be filled twice.
            layer._can_checkpoint_with_cache = isinstance(inputs["past_key_values"], SharedKeys)
        output = self.model(input_ids=ids, use_cache=False, **inputs)  # type: ignore[attr-defined]
        return output.last_hidden_state  # type: ignore[no-any-return]


class ScoresRowsOfExperts(ScoresRows):
    """`ScoresRows` for models with experts, which run as one grouped product.

    That product does not know float64; a network turned into float64 needs `set_experts_implementation("eager")`.
    """

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """Yes: the parent can. Transformers would look for a mark in the source of the module of this very class."""
        return True


def entropy_of(log_probs: Float[Tensor, "T V"]) -> Float[Tensor, " T"]:
    """Entropy in nats; a forbidden id, at minus infinity, contributes 0 and no gradient."""
    return -(log_probs.exp() * log_probs.masked_fill(log_probs.isneginf(), 0.0)).sum(1)
