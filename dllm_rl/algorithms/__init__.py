"""Algorithms by name: adding one is a file and a line here. Importing this package does not import torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dllm_rl.algorithms.base import Algorithm, Batch, Loss, Scores
from dllm_rl.algorithms.cj_grpo import CJGRPO
from dllm_rl.algorithms.co_grpo import CoGRPO
from dllm_rl.algorithms.diffu_grpo import DiffuGRPO
from dllm_rl.algorithms.dultra import DUltra
from dllm_rl.algorithms.igpo import IGPO
from dllm_rl.algorithms.mask_grpo import MaskGRPO
from dllm_rl.algorithms.mdpo import MDPO
from dllm_rl.algorithms.planner_imitation import PlannerImitation
from dllm_rl.algorithms.sft import SFT
from dllm_rl.algorithms.vrpo import VRPO

AlgorithmSection = Annotated[
    SFT | VRPO | DiffuGRPO | CJGRPO | MaskGRPO | MDPO | IGPO | CoGRPO | DUltra | PlannerImitation,
    Field(discriminator="type"),
]

__all__ = [
    "CJGRPO",
    "IGPO",
    "MDPO",
    "SFT",
    "VRPO",
    "Algorithm",
    "AlgorithmSection",
    "Batch",
    "CoGRPO",
    "DUltra",
    "DiffuGRPO",
    "Loss",
    "MaskGRPO",
    "PlannerImitation",
    "Scores",
]
