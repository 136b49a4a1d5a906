"""The state of a rollout: everything a component may read, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.nn.functional import pad

from dllm_rl.diffusion.denoiser import Denoiser
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.errors import DataError

OWN_WAY = ("attend", "memory")
"""Fields of a canvas that are no tensor, or may be none."""
Template = Sequence[int | None]
"""A completion partly given: a token id, or None where one is to be written."""
NO_MEMORY: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Canvas:
    """B prompts, padded on the left, each followed by L positions to write. Completions are indexed from 0 to L - 1.

    Every field but `memory`'s names is batch-first data, so a canvas can be forked (`select`), and every row stands
    where it stands whatever the others do: it has its own block and its own turn.
    """

    tokens: Int64[Tensor, "B N"]
    attend: Bool[Tensor, "B N"] | None
    """None when there is no padding."""
    hidden: Bool[Tensor, "B L"]
    """Positions not yet written. Not the same as holding the mask id, which a prompt may do literally."""
    editable: Bool[Tensor, "B L"]
    """False for fixed tokens: never written, remasked or edited."""
    block_of: Int64[Tensor, "B L"]
    """The block each position belongs to, counted from 0; never falls from left to right."""
    opened: Bool[Tensor, "B L"]
    """Positions whose block is being written, or was: what is hidden there is written before another is opened."""
    keys: Int64[Tensor, " B"]
    forwards: Int64[Tensor, " B"]
    """Forwards each row has taken part in."""
    block: Int64[Tensor, " B"]
    """The block being written; -1 before the first."""
    turn: Int64[Tensor, " B"]
    """Forwards made in this block."""
    opening: Int64[Tensor, " B"]
    """Positions that were hidden when this block was opened."""
    finished: Bool[Tensor, " B"]
    confidence: Float64[Tensor, "B L"]
    """The score for which each position was written; NaN where hidden or fixed."""
    logp: Float64[Tensor, "B L"]
    """Log-probability at temperature 1 of the token when it was written, nats; NaN where hidden or fixed."""
    memory: Mapping[str, Tensor] = field(default_factory=lambda: NO_MEMORY)
    """What components keep from step to step, batch-first, by a name of their own."""

    @property
    def prompt_length(self) -> int:
        return self.tokens.shape[1] - self.hidden.shape[1]

    @property
    def completion(self) -> Int64[Tensor, "B L"]:
        return self.tokens[:, self.prompt_length :]

    @property
    def window(self) -> Bool[Tensor, "B L"]:
        """Editable positions of the block that each unfinished row is writing."""
        return self.editable & (self.block_of == self.block[:, None]) & ~self.finished[:, None]

    @property
    def eligible(self) -> Bool[Tensor, "B L"]:
        """Positions that the next step may write: those hidden in the open block, or hidden again in one before it."""
        return self.hidden & self.editable & self.opened & ~self.finished[:, None]

    @property
    def unwritten(self) -> Bool[Tensor, "B L"]:
        """Every position that is still to be written, in blocks not yet opened too."""
        return self.hidden & self.editable & ~self.finished[:, None]

    @property
    def block_start(self) -> Int64[Tensor, " B"]:
        """First position of the block each row is writing."""
        return (self.block_of < self.block[:, None]).sum(dim=1)

    def columns(self, positions: Bool[Tensor, "B L"]) -> Bool[Tensor, "B N"]:
        """Completion positions as columns of the canvas."""
        return pad(positions, (self.prompt_length, 0))

    def without_prompt(self, mask_id: int) -> Int64[Tensor, "B N"]:
        """The ids with every prompt token hidden: the unconditional input of classifier-free guidance."""
        tokens = self.tokens.clone()
        tokens[:, : self.prompt_length] = mask_id
        return tokens

    def select(self, index: Int64[Tensor, " R"] | Bool[Tensor, " B"]) -> Canvas:
        """The rows at `index`, repeated as often as they are named."""
        rows = {part.name: getattr(self, part.name)[index] for part in fields(self) if part.name not in OWN_WAY}
        attend = None if self.attend is None else self.attend[index]
        memory = {name: value[index] for name, value in self.memory.items()}
        return replace(self, **rows, attend=attend, memory=memory)

    def write(
        self,
        row: Int64[Tensor, " C"],
        position: Int64[Tensor, " C"],
        token: Int64[Tensor, " C"],
        confidence: Float64[Tensor, " C"],
        logp: Float64[Tensor, " C"],
    ) -> Canvas:
        """A canvas with `token` at completion `position` of `row`."""
        cell = (row, position)
        return replace(
            self,
            tokens=self.tokens.index_put((row, self.prompt_length + position), token),
            hidden=self.hidden.index_put(cell, torch.zeros_like(row, dtype=torch.bool)),
            confidence=self.confidence.index_put(cell, confidence),
            logp=self.logp.index_put(cell, logp),
        )

    def hide(self, positions: Bool[Tensor, "B L"], mask_id: int) -> Canvas:
        """A canvas with `positions` hidden again."""
        return replace(
            self,
            tokens=self.tokens.masked_fill(self.columns(positions), mask_id),
            hidden=self.hidden | positions,
            confidence=self.confidence.masked_fill(positions, float("nan")),
            logp=self.logp.masked_fill(positions, float("nan")),
        )

    def overwrite(self, positions: Bool[Tensor, "B L"], token: Int64[Tensor, "B L"]) -> Canvas:
        """A canvas with tokens that nothing drew at `positions`; what was there, hidden or not, is gone."""
        prompt = self.tokens[:, : self.prompt_length]
        return replace(
            self,
            tokens=torch.cat([prompt, torch.where(positions, token, self.completion)], dim=1),
            hidden=self.hidden & ~positions,
            logp=self.logp.masked_fill(positions, float("nan")),
        )

    def open_block(self, block: Int64[Tensor, " B"]) -> Canvas:
        """Every row at the first turn of `block`, whatever it was writing; for those who choose the order of blocks."""
        inside = self.block_of == block[:, None]
        waiting = self.hidden & self.editable & inside
        return replace(
            self,
            block=block,
            opened=inside | ~self.hidden,
            turn=torch.zeros_like(self.turn),
            opening=waiting.sum(dim=1),
        )

    def open_next_block(self, stay: Bool[Tensor, " B"]) -> Canvas:
        """Rows with nothing hidden in an opened block move to the first that has; rows without one are finished.

        Args:
            stay: rows that keep their block though it is full.
        """
        waiting = self.hidden & self.editable
        full = ~(waiting & self.opened).any(dim=1)
        beyond = self.block_of.masked_fill(~waiting, self.hidden.shape[1]).amin(dim=1)
        finished = self.finished | (~waiting.any(dim=1) & ~stay)
        moves = full & ~finished & ~stay
        block = torch.where(moves, beyond, self.block)
        inside = self.block_of == block[:, None]
        count = (waiting & inside).sum(dim=1)
        return replace(
            self,
            block=block,
            opened=self.opened | inside,
            turn=self.turn.masked_fill(moves, 0),
            opening=torch.where(moves, count, self.opening),
            finished=finished,
        )


def refuse_overlong(denoiser: Denoiser, prompts: Sequence[Sequence[int]], gen_length: int) -> None:
    """Check that there are prompts and that each leaves the model room for `gen_length` tokens.

    Raises:
        DataError: there are no prompts, or one is too long for the model.
    """
    if not prompts:
        raise DataError("no prompts to generate from; pass at least one")
    limit = denoiser.max_positions
    for row, prompt in enumerate(prompts):
        length = len(prompt) + gen_length
        if limit is not None and length > limit:
            raise DataError(
                f"prompt {row} has {len(prompt)} tokens, which with gen_length {gen_length} makes {length} positions; "
                f"the model has {limit}. Shorten one or the other"
            )


def blank_canvas(
    denoiser: Denoiser,
    prompts: Sequence[Sequence[int]],
    block_of: Int64[Tensor, "B L"],
    keys: Int64[Tensor, " B"],
    fixed: Sequence[Template] | None = None,
) -> Canvas:
    """Prompts followed by hidden positions, before the first block is opened.

    Args:
        fixed: for each prompt, the completion's tokens that are given; None where one is to be written.

    Raises:
        DataError: there are no prompts, one is too long for the model, or `fixed` does not fit.
    """
    rows, length = block_of.shape
    refuse_overlong(denoiser, prompts, length)
    spec, device = denoiser.spec, denoiser.device
    given = templates_of(denoiser, fixed, rows, length)
    filled = [[spec.mask_id if token is None else token for token in row] for row in given]
    pad_id = spec.eos_ids[0] if spec.eos_ids else spec.mask_id
    sequences = sequences_from_ids(prompts, filled, pad_id, device)
    hidden = torch.tensor([[token is None for token in row] for row in given], dtype=torch.bool, device=device)
    nothing = torch.full((rows, length), float("nan"), dtype=torch.float64, device=device)
    zeros = torch.zeros(rows, dtype=torch.int64, device=device)
    return Canvas(
        tokens=sequences.tokens,
        attend=None if bool(sequences.attend.all()) else sequences.attend,
        hidden=hidden,
        editable=hidden,
        block_of=block_of.to(device),
        opened=torch.zeros_like(hidden),
        keys=keys.to(device),
        forwards=zeros,
        block=zeros - 1,
        turn=zeros,
        opening=zeros,
        finished=zeros.bool(),
        confidence=nothing,
        logp=nothing,
    )


def templates_of(
    denoiser: Denoiser, fixed: Sequence[Template] | None, rows: int, length: int
) -> list[list[int | None]]:
    """One template per row, nothing given if there are none.

    Raises:
        DataError: not one template per row, one of another length, or with something that cannot be given.
    """
    if fixed is None:
        return [[None] * length] * rows
    if len(fixed) != rows:
        raise DataError(f"{len(fixed)} templates of fixed tokens for {rows} prompts; expected one per prompt")
    for row, template in enumerate(fixed):
        if len(template) != length:
            raise DataError(
                f"the template of prompt {row} has {len(template)} places for {length} positions; "
                "expected one per position, None where a token is to be written"
            )
        for position, token in enumerate(template):
            _refuse_token(token, denoiser.spec.mask_id, f"the template of prompt {row} gives", position)
    return [list(template) for template in fixed]


def _refuse_token(token: int | None, mask_id: int, where: str, position: int) -> None:
    if token is None:
        return
    if token < 0:
        raise DataError(f"{where} {token!r} at position {position}; expected a token id, or None where one is written")
    if token == mask_id:
        raise DataError(f"{where} the mask id {token} at position {position}; expected None where a token is written")
