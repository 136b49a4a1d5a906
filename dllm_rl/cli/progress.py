"""The bar of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from dllm_rl.evaluation.metrics import Record
from dllm_rl.evaluation.protocol import EvalProtocol
from dllm_rl.evaluation.sitting import Progress


class Bar(Progress):
    """Answers given, and how right they are so far; only on a terminal."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.scores: list[float] = []

    def start(self, protocol: EvalProtocol, todo: int, done: Sequence[Record]) -> None:
        self.scores = [record.score for record in done]
        total = todo + len(done)
        self.bar = tqdm(total=total, initial=len(done), desc=protocol.task, unit="answer", disable=None)

    def add(self, records: Sequence[Record]) -> None:
        self.scores += [record.score for record in records]
        assert self.bar is not None
        self.bar.set_postfix_str(f"accuracy {math.fsum(self.scores) / len(self.scores):.3f}", refresh=False)
        self.bar.update(len(records))

    def end(self) -> None:
        assert self.bar is not None
        self.bar.close()
