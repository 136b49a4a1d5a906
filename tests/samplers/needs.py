"""Options without which a preset cannot run, for tests of all presets."""

from __future__ import annotations

from typing import Any

from dllm_rl.samplers.position_aware import Background

FREQUENCY = {0: 0.5, 1: 0.02}
UNSEEN = 0.1
BACKGROUND = Background.from_probabilities(FREQUENCY, UNSEEN)

NEEDS: dict[str, dict[str, Any]] = {"pc": {"background": BACKGROUND}, "pc_linear": {"background": BACKGROUND}}
