"""The state of a rollout: everything a component may read, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn.functional import pad

from dllm_rl.diffusion.denoiser import Denoiser
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.errors import DataError


@dataclass(frozen=True, slots=True)
class Canvas:
    """B prompts, padded on the left, each followed by L positions to write. Completions are indexed from 0 to L - 1."""

    tokens: Int64[Tensor, "B N"]
    attend: Bool[Tensor, "B N"] | None
    """None when there is no padding."""
    hidden: Bool[Tensor, "B L"]
    """Positions not yet written. Not the same as holding the mask id, which a prompt may do literally."""
    keys: Int64[Tensor, " B"]

    @property
    def prompt_length(self) -> int:
        return self.tokens.shape[1] - self.hidden.shape[1]

    def columns(self, positions: Bool[Tensor, "B L"]) -> Bool[Tensor, "B N"]:
        """Completion positions as columns of the canvas."""
        return pad(positions, (self.prompt_length, 0))

    def without_prompt(self, mask_id: int) -> Int64[Tensor, "B N"]:
        """The ids with every prompt token hidden: the unconditional input of classifier-free guidance."""
        tokens = self.tokens.clone()
        tokens[:, : self.prompt_length] = mask_id
        return tokens

    def write(self, row: Int64[Tensor, " C"], index: Int64[Tensor, " C"], token: Int64[Tensor, " C"]) -> Canvas:
        """A canvas with `token` written at completion position `index` of `row`."""
        tokens, hidden = self.tokens.clone(), self.hidden.clone()
        tokens[row, self.prompt_length + index] = token
        hidden[row, index] = False
        return replace(self, tokens=tokens, hidden=hidden)


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
    denoiser: Denoiser, prompts: Sequence[Sequence[int]], gen_length: int, keys: Int64[Tensor, " B"]
) -> Canvas:
    """Prompts followed by `gen_length` hidden positions.

    Raises:
        DataError: there are no prompts, or one is too long for the model.
    """
    refuse_overlong(denoiser, prompts, gen_length)
    spec = denoiser.spec
    blank = [[spec.mask_id] * gen_length] * len(prompts)
    pad_id = spec.eos_ids[0] if spec.eos_ids else spec.mask_id
    sequences = sequences_from_ids(prompts, blank, pad_id, denoiser.device)
    attend = None if bool(sequences.attend.all()) else sequences.attend
    hidden = torch.ones(len(prompts), gen_length, dtype=torch.bool, device=denoiser.device)
    return Canvas(sequences.tokens, attend, hidden, keys.to(denoiser.device))
