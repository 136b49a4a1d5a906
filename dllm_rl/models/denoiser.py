"""A Hugging Face network as a `Denoiser`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor, nn

from dllm_rl.diffusion.denoiser import DiffusionSpec, KeyValues, TokenScores
from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import ModelContractError
from dllm_rl.models.attention import (
    Attend,
    AttentionSpec,
    attention_mask,
    own_pattern,
    position_ids,
    refuse_flex_on_cpu,
    seen_positions,
)
from dllm_rl.models.cache import ColumnCache, Visit, refuse_mismatch
from dllm_rl.models.few import Few
from dllm_rl.models.hollow import frozen_copy
from dllm_rl.models.policy_head import refuse_missing
from dllm_rl.models.prefixes import Prefixes
from dllm_rl.models.save import save


class DiffusionModel:
    """A network, the constants of its noise and its tokenizer.

    Row i of every output is about token i, whatever the family. Nothing here draws, and nothing but `logits_through`
    switches gradients: wrap calls in `torch.no_grad()` where none are wanted.

    A model with a block size attends block-causally by itself, blocks counted from the first attended position, unless
    `attend` names all pairs or a pattern.
    """

    def __init__(self, network: nn.Module, spec: DiffusionSpec, tokenizer: Any | None = None) -> None:
        self.network = network
        self.spec = spec
        self.tokenizer = tokenizer
        self._bare: Any = network
        self._reference: DiffusionModel | None = None

    def with_network(self, wrapped: nn.Module) -> DiffusionModel:
        """The same model, scoring through a wrapper of its network (DistributedDataParallel, a DeepSpeed engine)."""
        other = copy.copy(self)
        other.network = wrapped
        return other

    @property
    def config(self) -> Any:
        """The network's configuration, under transformers' names."""
        return self._bare.config

    @property
    def device(self) -> torch.device:
        return self._bare.device  # type: ignore[no-any-return]

    @property
    def max_positions(self) -> int:
        """Longest canvas the network was made for."""
        return self.config.max_position_embeddings  # type: ignore[no-any-return]

    def logits(
        self, tokens: Int[Tensor, "B N"], attend: Attend = None, positions: Int64[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N V"]:
        """Logits of every position, at least float32. Holds [B, N, V]: for small inputs only; training uses `score`.

        Args:
            attend: positions that may be looked at: None (all), per position, per pair, or a pattern by blocks.
            positions: position ids; counted over attended positions by default.
        """
        everywhere = torch.ones(tokens.shape, dtype=torch.bool, device=tokens.device)
        rows = self.logits_at(tokens, everywhere, attend, positions)
        return rows.reshape(*tokens.shape, rows.shape[1])

    def logits_at(
        self,
        canvas: Int[Tensor, "B N"],
        where: Bool[Tensor, "B N"],
        attend: Attend = None,
        positions: Int64[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "T V"]:
        """Logits at the T true positions of `where` in row-major order, at least float32."""
        inputs = self._inputs(canvas, where, attend, positions)
        return self.network(**inputs)  # type: ignore[no-any-return]

    def logits_seeing(
        self,
        canvas: Int[Tensor, "B N"],
        where: Bool[Tensor, "B N"],
        sees: Bool[Tensor, "B N N"],
        positions: Int64[Tensor, "B N"],
    ) -> Float[Tensor, "T V"]:
        """Logits at `where` when each position looks at those that `sees` names only; see `PairwiseDenoiser`.

        Raises:
            ModelContractError: for a model with a logit shift, or a position id that the network was not made for.
        """
        if self.spec.logit_shift:
            raise ModelContractError(
                "this model predicts a token from the position before it, which is not unique here; choose a sampler "
                "without a shadow"
            )
        return self.logits_at(canvas, where, sees, positions)

    def plan_at(
        self,
        canvas: Int[Tensor, "B N"],
        where: Bool[Tensor, "B N"],
        attend: Attend = None,
        *,
        open: Bool[Tensor, "B N"] | None = None,
    ) -> tuple[Float[Tensor, "T V"], Float[Tensor, " T"]]:
        """Token logits and planner logits, of one forward, at the T true positions of `where` in row-major order.

        Args:
            open: positions that may be written now, which the planner is told; None: those of `where`.

        Raises:
            ModelContractError: the model has no planner head.
        """
        told = self._plan_inputs(canvas, where if open is None else open, attend)
        inputs = {**self._inputs(canvas, where, attend, None), **told}
        logits, plan = self.network(**inputs)
        return logits, plan[where]

    def schedule_at(self, features: Float[Tensor, "R F"]) -> Float[Tensor, "R A"]:
        """Means of the schedule policy's actions, float32; differentiable. The network itself is not run.

        Raises:
            ModelContractError: the model has no schedule head.
        """
        refuse_missing(self.config, "schedule")
        return self.network(features=features)  # type: ignore[no-any-return]

    def open_cache(self, rows: int, columns: int) -> ColumnCache:
        """An empty cache for `logits_through`. Void once the weights change."""
        return ColumnCache.empty(rows, columns, self.device)

    @torch.no_grad()
    def logits_through(
        self,
        cache: KeyValues,
        canvas: Int[Tensor, "B N"],
        refresh: Bool[Tensor, "B N"],
        where: Bool[Tensor, "B N"],
        attend: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "T V"]:
        """Logits at `where` from a forward of the columns of `refresh` only; see `CachingDenoiser`. Without gradients.

        Raises:
            ModelContractError: for `where` outside of `refresh`, a kept column that is missing or out of place, a
                network in training mode (layers under activation checkpointing leave caches alone), or an attention
                implementation other than sdpa and eager.
        """
        kept = refuse_mismatch(cache, canvas, refresh, where)
        self._refuse_too_long(canvas.shape[1], 1)
        if self._bare.training:
            raise ModelContractError("the network is in training mode, where layers may ignore a cache; call eval()")
        seen = seen_positions(attend, canvas.shape, canvas.device)
        rows = self._rows(where, seen)
        columns = (refresh & seen).flatten().index_fill(0, rows, True).view_as(refresh)
        visit = Visit(kept, columns, seen, position_ids(None, seen), self.spec.block_size)
        logits = self.network(**visit.inputs(canvas, rows, self._bare))
        visit.finish()
        return logits  # type: ignore[no-any-return]

    def token_logp(
        self,
        canvas: Int[Tensor, "B N"],
        tokens: Int[Tensor, "B N"],
        where: Bool[Tensor, "B N"],
        attend: Attend = None,
        transform: Transform | None = None,
    ) -> Float[Tensor, "B N"]:
        """Log-probability, in nats, of `tokens` at `where` given `canvas`; zero elsewhere. See `score`."""
        return self.score(canvas, tokens, where, attend, transform).logp

    def score(
        self,
        canvas: Int[Tensor, "B N"],
        tokens: Int[Tensor, "B N"],
        where: Bool[Tensor, "B N"],
        attend: Attend = None,
        transform: Transform | None = None,
        *,
        prompt: Bool[Tensor, "B N"] | None = None,
        entropy: bool = False,
        open: Bool[Tensor, "B N"] | None = None,
        temperature: Float64[Tensor, " B"] | None = None,
        cfg_scale: Float64[Tensor, " B"] | None = None,
    ) -> TokenScores:
        """Log-probabilities of `tokens` at `where` given `canvas`; differentiable, never holds logits of all positions.

        The network runs on no column that is padding in every row, and once for rows that show it the same. A
        block-causal one runs once the blocks that rows begin with alike.

        Args:
            transform: the distribution to score under; None is the full softmax at temperature 1.
            prompt: positions that classifier-free guidance hides; needed exactly where something guides.
            open: positions to ask the planner head about, in the same forward.
            temperature: of each row's distribution, in place of the transform's.
            cfg_scale: strength of each row's guidance, in place of the transform's.

        Raises:
            ModelContractError: for a canvas longer than the network was made for, a token that the transform forbids,
                guidance without a prompt, or a planner that the model does not have.
        """
        if not len(canvas):
            return self._score_of_no_row(canvas, transform, entropy, open, temperature, cfg_scale)
        self._refuse_mismatch(canvas, where)
        guides = cfg_scale is not None or (transform is not None and transform.cfg_scale)
        few = Few.of(canvas, where, attend, self._without(canvas, prompt) if guides else None, open)
        prefixes = self._prefixes(few)
        inputs, seen = self._seen(few.canvas, few.attend, None, prefixes)
        row = where.nonzero()[:, 0]
        inputs.update(tokens=tokens[where].long(), transform=transform, entropy=entropy)
        home = None if prefixes is None else prefixes.home.to(canvas.device)
        rows, place = few.flat(self._rows(few.where, seen[few.place]), home)
        inputs.update(rows=rows, place=place, unconditional_ids=few.blind)
        inputs.update(temperature=None if temperature is None else temperature[row])
        inputs.update(cfg_scale=None if cfg_scale is None else cfg_scale[row])
        if transform is not None:
            self._refuse_forbidden(inputs["tokens"], transform)
        if open is None or few.open is None:
            scores, plan = self.network(**inputs), None
        else:
            scores, plan = self.network(**inputs, **self._plan_inputs(few.canvas, few.open, few.attend))
            plan = few.everywhere(plan).masked_fill(~open, 0.0)
        dense = [None if part is None else part.new_zeros(where.shape).masked_scatter(where, part) for part in scores]
        return TokenScores(dense[0], dense[1], plan)  # type: ignore[arg-type]

    def _score_of_no_row(
        self, canvas: Int[Tensor, "0 N"], transform: Transform | None, entropy: bool, *others: Tensor | None
    ) -> TokenScores:
        """Of nothing, in a forward of one row like any other: networks do not take none, and processes that share the
        weights wait for each other's forwards.
        """
        row, nowhere = canvas.new_zeros(1, canvas.shape[1]), canvas.new_zeros(1, canvas.shape[1], dtype=torch.bool)
        some = [None if each is None else each.new_ones(1, *each.shape[1:]) for each in others]
        one = self.score(
            row,
            row,
            nowhere,
            transform=transform,
            prompt=nowhere,
            entropy=entropy,
            open=some[0],
            temperature=some[1],
            cfg_scale=some[2],
        )
        return TokenScores(*(None if part is None else part[:0] for part in one))  # type: ignore[arg-type]

    @contextmanager
    def reference(self) -> Iterator[DiffusionModel]:
        """The model that training started from: adapters off, or the frozen copy of `make_reference_copy`.

        An adapter given to `load_model` counts as training: the reference is the base below it, unless
        `make_reference_copy` was called.

        Raises:
            ModelContractError: for a model without adapters and without a copy.
        """
        if self._reference is not None:
            yield self._reference
        elif hasattr(self._bare, "disable_adapter"):
            before = [(parameter, parameter.requires_grad) for parameter in self._bare.parameters()]
            try:
                with self._bare.disable_adapter():
                    yield self
            finally:  # switching adapters on again made all of them trainable
                for parameter, trainable in before:
                    parameter.requires_grad_(trainable)
        else:
            raise ModelContractError(
                "the model has no adapter to switch off and no frozen copy; call make_reference_copy() before training"
            )

    def make_reference_copy(
        self,
        prepare: Callable[[nn.Module], nn.Module] | None = None,
        weight_of: Callable[[Tensor], Tensor] | None = None,
    ) -> DiffusionModel:
        """Keep a frozen copy of the weights as they are now, for `reference`. Costs the memory of a second model.

        Args:
            prepare: puts the copy where and how the trained network is; None leaves it as it is.
            weight_of: gives the copy's weight for one of the network's, where `prepare` will replace it; None copies.
        """
        frozen = DiffusionModel(frozen_copy(self._bare, weight_of), self.spec, self.tokenizer)
        self._reference = frozen if prepare is None else frozen.with_network(prepare(frozen.network))
        return self._reference

    def save(self, folder: str | Path, *, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write weights (a LoRA model: its adapter), configuration and tokenizer; see `dllm_rl.models.save.save`."""
        save(self._bare, self.tokenizer, Path(folder), state_dict)

    def _inputs(
        self,
        canvas: Int[Tensor, "B N"],
        where: Bool[Tensor, "B N"],
        attend: Attend,
        positions: Int64[Tensor, "B N"] | None,
    ) -> dict[str, Any]:
        self._refuse_mismatch(canvas, where)
        inputs, seen = self._seen(canvas, attend, positions, None)
        return {**inputs, "rows": self._rows(where, seen)}

    def _prefixes(self, few: Few) -> Prefixes | None:
        """What the rows begin with alike, where the model's pattern allows to run that once."""
        takes_pairs = self.config._attn_implementation in ("sdpa", "eager")
        return Prefixes.of(few, self.spec.block_size) if self.spec.block_size and takes_pairs else None

    def _seen(
        self,
        canvas: Int[Tensor, "B N"],
        attend: Attend,
        positions: Int64[Tensor, "B N"] | None,
        prefixes: Prefixes | None,
    ) -> tuple[dict[str, Any], Bool[Tensor, "B N"]]:
        """What the network is given of a canvas, and which positions are no padding."""
        refuse_flex_on_cpu(self._bare, canvas.device)
        attend = own_pattern(attend, self.spec.block_size)
        two_streams = isinstance(attend, AttentionSpec) and attend.kind == "two_stream"
        length = canvas.shape[1] if positions is None else int(positions.max()) + 1
        self._refuse_too_long(length, 2 if two_streams else 1)
        seen = seen_positions(attend, canvas.shape, canvas.device)
        if prefixes is not None:
            return prefixes.inputs(canvas, self._bare), seen
        positions = position_ids(attend, seen) if positions is None else positions
        mask = attention_mask(attend, seen, positions, self._bare)
        return {"input_ids": canvas, "attention_mask": mask, "position_ids": positions}, seen

    def _plan_inputs(self, canvas: Int[Tensor, "B N"], open: Bool[Tensor, "B N"], attend: Attend) -> dict[str, Tensor]:
        refuse_missing(self.config, "planner")
        seen = seen_positions(own_pattern(attend, self.spec.block_size), canvas.shape, canvas.device)
        written = (seen & (canvas != self.spec.mask_id)).sum(1)
        return {"open": open, "time": written / seen.sum(1)}

    def _refuse_too_long(self, length: int, streams: int) -> None:
        if length > streams * self.max_positions:
            raise ModelContractError(
                f"the canvas is {length} positions long and the network was made for "
                f"{streams * self.max_positions}; shorten the prompt or the completion"
            )

    def _rows(self, where: Bool[Tensor, "B N"], seen: Bool[Tensor, "B N"]) -> Int64[Tensor, " T"]:
        """Flat indices of the outputs that predict the tokens at `where`."""
        rows = where.flatten().nonzero()[:, 0]
        if not self.spec.logit_shift:
            return rows
        # Nothing stands before the first token: like the published samplers, read its own output.
        before = seen.roll(1, dims=1)
        before[:, 0] = False
        return rows - before.flatten()[rows].long()

    def _without(self, canvas: Int[Tensor, "B N"], prompt: Bool[Tensor, "B N"] | None) -> Int[Tensor, "B N"]:
        if prompt is None:
            raise ModelContractError(
                "the transform guides (cfg_scale > 0) but no prompt is given; pass prompt=Bool[B, N]"
            )
        return canvas.masked_fill(prompt, self.spec.mask_id)

    @staticmethod
    def _refuse_mismatch(canvas: Int[Tensor, "B N"], where: Bool[Tensor, "B N"]) -> None:
        if where.shape != canvas.shape:
            raise ModelContractError(
                f"`where` has shape {tuple(where.shape)} and the canvas {tuple(canvas.shape)}; expected the same shape"
            )

    @staticmethod
    def _refuse_forbidden(tokens: Int64[Tensor, " T"], transform: Transform) -> None:
        forbidden = torch.tensor(transform.forbidden_ids, dtype=torch.int64, device=tokens.device)
        hit = tokens[torch.isin(tokens, forbidden)]
        if len(hit):
            raise ModelContractError(
                f"{len(hit)} tokens to score, the first of them {int(hit[0])}, are forbidden by the transform and have "
                "probability 0; score what was drawn under this transform"
            )
