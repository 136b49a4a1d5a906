"""From lists of token ids to one rectangle."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dllm_rl.diffusion.views import Sequences


def sequences_from_ids(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device | str = "cpu",
) -> Sequences:
    """Prompts padded on the left and completions on the right, so that every completion starts at the same column.

    Exactly the ids given are attended to, and exactly the completions' ids are scored; `pad_id` among them is a token
    like any other. Prompts and completions may be empty. Equal lengths get no padding.

    Raises:
        ValueError: prompts and completions differ in number, or there are none.
    """
    if len(prompts) != len(completions) or not prompts:
        raise ValueError(
            f"{len(prompts)} prompts and {len(completions)} completions; expected as many, and at least one"
        )
    start = max(map(len, prompts))
    shape = len(prompts), start + max(map(len, completions))
    tokens = torch.full(shape, pad_id, dtype=torch.int64)
    attend, completion = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for row, (before, after) in enumerate(zip(prompts, completions, strict=True)):
        first, last = start - len(before), start + len(after)
        tokens[row, first:last] = torch.tensor([*before, *after], dtype=torch.int64)
        attend[row, first:last] = True
        completion[row, start:last] = True
    return Sequences(tokens, attend, completion, completion).to(torch.device(device))
