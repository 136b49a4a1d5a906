"""WINO's sampler: write widely, hide again what does not hold."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.order import refuse_improbable, refuse_unknown_order, score_by
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import ShareOfOpen
from dllm_rl.samplers.revise.wino import Wino
from dllm_rl.samplers.select import Threshold


@dataclass(frozen=True, slots=True)
class WinoSampler:
    """Tokens with at least a low confidence, which stay if they also look likely to a copy that cannot see them.

    No more than a block's length of forwards, each of which has a block of columns more. The paper sets the threshold
    for each task, from 0.5 to 0.8. Differs from the published code, at temperature 0, only where a confidence equals
    the threshold, which is enough here, where two confidences are equal, and where it would write the mask.

    Source: Hong et al., https://arxiv.org/abs/2507.18578. See `samplers.revise.wino`.
    """

    threshold: float = 0.6
    verify: float = 0.9
    """Tokens to which their copy gives less are hidden again, as far as that leaves progress; 0 hides none."""
    order: str = "drawn"
    """Confidence is the probability of the token drawn ("drawn"), or the largest, blind to the draw ("max")."""

    def __post_init__(self) -> None:
        refuse_improbable("threshold", self.threshold)
        refuse_unknown_order(self.order)
        if not 0 <= self.verify <= 1:
            raise RecipeError(f"verify is {self.verify}; expected a probability")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        request.refuse_steps("wino")
        transform, rule = request.transform(spec), Threshold(self.threshold, cap=ShareOfOpen())
        score = score_by(self.order, transform)
        return Sampler(transform, score, rule, request.blocks(spec), Wino(self.verify))
