"""Stopping when numbers go wrong: before the weights are stepped, on all processes at once, with the rows saved.

Whatever is looked at stays on the device until the gradient norm is known, which waits for everything anyway; what
the processes found is then exchanged once per update.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.distributed.tensor import DTensor

from dllm_rl.algorithms.base import Batch, Scores
from dllm_rl.errors import DivergenceError
from dllm_rl.training.source import Sample

SIGNS = (
    "the loss is not finite",
    "an advantage is not finite",
    "a log-probability of the policy is not finite",
    "a log-probability of the rollout is not finite",
    "a log-probability of the reference is not finite",
    "a log-ratio is above train.stop_at_log_ratio",
)
"""What can be wrong with a micro-batch, C of them."""
_NOT_FINITE, _TOO_LARGE = "the gradient norm is not finite", "the gradient norm is above train.stop_at_grad_norm"


@dataclass(frozen=True, slots=True)
class Limits:
    """How large numbers may get. What is not finite always stops a run."""

    grad_norm: float | None = None
    """Of an update, before clipping."""
    log_ratio: float | None = None
    """Absolute, of a scored token under the policy and under the weights that wrote it, nats."""


class Seen(NamedTuple):
    """One micro-batch of the update under way, with its scores."""

    batch: Batch
    logp: Float[Tensor, "R N"]
    """Scores of the policy, in the order of the batch's views."""
    signs: Bool[Tensor, " C"]


Exchange = Callable[[Tensor], Tensor]
"""From numbers of this process to their sums over all processes."""


@dataclass(slots=True)
class DivergenceGuard:
    """Looks at every micro-batch, and stops the run where something is wrong.

    Args:
        folder: where rows are written, once there is something to write.
    """

    folder: Path
    limits: Limits
    rank: int
    decode: Callable[[Sequence[int]], str] | None
    seen: list[Seen] = field(default_factory=list)

    def look(self, batch: Batch, scores: Scores, loss: Tensor) -> None:
        """Note what a micro-batch gave; nothing waits for the device."""
        logp = torch.empty_like(scores.logp)
        logp[scores.view] = scores.logp
        self.seen.append(Seen(batch, logp, _signs(batch, logp, loss, self.limits)))

    def check(self, norm: Tensor | float | None, update: int, exchange: Exchange, samples: Sequence[Sample]) -> None:
        """End the look at an update, on all processes together.

        Args:
            norm: of the gradient, over all processes; None where it is not known, or for a loss scaler to judge.
            update: counted from 1.
            exchange: called once.
            samples: the rollouts that the micro-batches came from, in their order, or nothing.

        Raises:
            DivergenceError: something is wrong here or elsewhere.
        """
        seen, self.seen = self.seen, []
        mine = torch.stack([each.signs for each in seen]).any(0)
        found = exchange(mine.long()).tolist()
        wrong = [sign for sign, count in zip(SIGNS, found, strict=True) if count]
        wrong += _of_norm(norm, self.limits)
        if not wrong:
            return
        alone = sum(found) > 0 and not bool(mine.any())
        if alone:
            raise DivergenceError(f"update {update}: {', '.join(wrong)}, on another rank, which saves the rows")
        raise DivergenceError(
            f"update {update}: {', '.join(wrong)}; {self._save(seen, update, wrong, samples)}. Look at "
            "them; go on from the last checkpoint, which is from before, with a lower train.learning_rate or "
            "train.max_grad_norm (train.resume_from_checkpoint=CHECKPOINT, and another output)"
        )

    def _save(self, seen: Sequence[Seen], update: int, wrong: list[str], samples: Sequence[Sample]) -> str:
        """Write the rows, and say where."""
        file = self.folder / f"update-{update}-rank-{self.rank}.jsonl"
        known = samples if len(samples) == sum(len(each.batch.sequences) for each in seen) else []
        lines, first = [], 0
        for micro_batch, each in enumerate(seen):
            place = {"update": update, "rank": self.rank, "micro_batch": micro_batch, "wrong": wrong}
            for row in _rows_at_fault(each, any(bool(other.signs.any()) for other in seen)):
                sample = known[first + row] if known else None
                lines.append(json.dumps(place | self._line(each, row, sample)) + "\n")
            first += len(each.batch.sequences)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            return f"{file} could not be written: {error}"
        return f"the {len(lines)} rows at fault, or among which they are, are in {file}"

    def _line(self, seen: Seen, row: int, sample: Sample | None) -> dict[str, Any]:
        sequences = seen.batch.sequences
        prompt, completion = (
            sequences.tokens[row][where[row]].tolist() for where in (sequences.prompt, sequences.completion)
        )
        texts = {} if self.decode is None else {"prompt": self.decode(prompt), "completion": self.decode(completion)}
        advantage = seen.batch.advantage
        return {
            "row": row,
            **texts,
            "prompt_ids": prompt,
            "completion_ids": completion,
            "reward": None if sample is None else _plain(sample.reward),
            "advantage": None if advantage is None else _plain(float(advantage[row])),
            "views": list(_views(seen, row)),
        }


def _signs(batch: Batch, logp: Float[Tensor, "R N"], loss: Tensor, limits: Limits) -> Bool[Tensor, " C"]:
    scored, fine = batch.views.scored, torch.ones((), dtype=torch.bool, device=logp.device)

    def finite(values: Tensor | None, where: Tensor | None = None) -> Tensor:
        if values is None:
            return fine
        return (torch.isfinite(values) if where is None else torch.isfinite(values) | ~where).all()

    near = fine
    if limits.log_ratio is not None and batch.behaviour_logp is not None:
        near = _near(logp, batch, limits.log_ratio).all()
    return ~torch.stack(
        [
            finite(loss),
            finite(batch.advantage),
            finite(logp, scored),
            finite(batch.behaviour_logp, scored),
            finite(batch.reference_logp, scored),
            near,
        ]
    )


def _near(logp: Float[Tensor, "R N"], batch: Batch, bound: float) -> Bool[Tensor, "R N"]:
    assert batch.behaviour_logp is not None
    far = (logp - batch.behaviour_logp).abs() > bound  # what is not finite is another sign
    return ~far | ~batch.views.scored


def _of_norm(norm: Tensor | float | None, limits: Limits) -> list[str]:
    """What is wrong with a gradient norm. DeepSpeed gives -1 for one that is not finite."""
    if norm is None:
        return []
    whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
    value = float(whole)
    if not math.isfinite(value) or value < 0:
        return [_NOT_FINITE]
    return [_TOO_LARGE] if limits.grad_norm is not None and value > limits.grad_norm else []


def _rows_at_fault(seen: Seen, known: bool) -> list[int]:
    """Sequences with a number that is wrong; all of the micro-batch where only sums are.

    Args:
        known: whether a micro-batch has signs, so that those without any are left out.
    """
    batch, everything = seen.batch, list(range(len(seen.batch.sequences)))
    if not bool(seen.signs.any()):
        return [] if known else everything
    of_views = torch.zeros(len(batch.views), dtype=torch.bool, device=seen.logp.device)
    for values in (seen.logp, batch.behaviour_logp, batch.reference_logp):
        if values is not None:
            of_views |= (~torch.isfinite(values) & batch.views.scored).any(-1)
    if bool(seen.signs[-1]) and batch.behaviour_logp is not None:
        far = (seen.logp - batch.behaviour_logp).abs().masked_fill(~batch.views.scored, 0.0).amax(-1)
        of_views |= far == far.max()
    rows: Int64[Tensor, " S"] = batch.views.row[of_views]
    found = {int(row) for row in rows}
    if batch.advantage is not None:
        found |= {int(row) for row in (~torch.isfinite(batch.advantage)).nonzero().flatten()}
    return sorted(found) or everything


def _views(seen: Seen, row: int) -> Iterator[dict[str, Any]]:
    """What the model was shown of a sequence, and what it and the others said of the scored positions."""
    batch = seen.batch
    for view in (batch.views.row == row).nonzero().flatten().tolist():
        where = batch.views.scored[view]
        scores = {"logp": seen.logp, "behaviour_logp": batch.behaviour_logp, "reference_logp": batch.reference_logp}
        yield {
            "canvas": batch.views.canvas[view].tolist(),
            "scored": where.nonzero().flatten().tolist(),
            "weight": [_plain(value) for value in batch.views.weight[view][where].tolist()],
            **{
                name: None if values is None else [_plain(value) for value in values[view][where].tolist()]
                for name, values in scores.items()
            },
        }


def _plain(value: float) -> float | str:
    """JSON has no NaN."""
    return value if math.isfinite(value) else str(value)
