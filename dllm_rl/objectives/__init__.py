"""What is optimised: pure functions of tensors that know nothing of models, views or algorithms.

Names resolve on first use, so that importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_rl.objectives.advantages import group_advantages as group_advantages
    from dllm_rl.objectives.policy import clipped_surrogate as clipped_surrogate
    from dllm_rl.objectives.policy import is_clipped as is_clipped
    from dllm_rl.objectives.policy import reinforce as reinforce
    from dllm_rl.objectives.preference import dpo_loss as dpo_loss
    from dllm_rl.objectives.ratio import log_ratio as log_ratio
    from dllm_rl.objectives.reduce import EffectiveShare as EffectiveShare
    from dllm_rl.objectives.reduce import Mean as Mean
    from dllm_rl.objectives.reduce import Report as Report
    from dllm_rl.objectives.reduce import effective_share as effective_share
    from dllm_rl.objectives.reduce import masked_mean as masked_mean
    from dllm_rl.objectives.reduce import mean_of as mean_of
    from dllm_rl.objectives.reduce import variance_of_mean as variance_of_mean
    from dllm_rl.objectives.steps import step_advantages as step_advantages

# `kl` is not here: a name cannot be both the module and its function. It is `dllm_rl.objectives.kl.kl`.
_HOME = {
    "group_advantages": "advantages",
    "clipped_surrogate": "policy",
    "is_clipped": "policy",
    "reinforce": "policy",
    "dpo_loss": "preference",
    "log_ratio": "ratio",
    "EffectiveShare": "reduce",
    "Mean": "reduce",
    "Report": "reduce",
    "effective_share": "reduce",
    "masked_mean": "reduce",
    "mean_of": "reduce",
    "variance_of_mean": "reduce",
    "step_advantages": "steps",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
