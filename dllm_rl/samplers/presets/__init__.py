"""Named samplers. A preset is its options, and a function of them, of a request and of the model's constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.options import make
from dllm_rl.samplers.presets.adaptive import Dus, KlassSampler, LocalLeapSampler
from dllm_rl.samplers.presets.blind import AncestralSteps, FirstHitting, LowEntropy, MaskGit, TopMargin
from dllm_rl.samplers.presets.dream import Dream
from dllm_rl.samplers.presets.eoser import Ass, Eoser, EoserAss
from dllm_rl.samplers.presets.fast import EbSampler, FastFactor, FastThreshold
from dllm_rl.samplers.presets.llada import Llada, Rl
from dllm_rl.samplers.presets.pc import Pc, PcLinear
from dllm_rl.samplers.presets.planner import Planner, PlannerPlackettLuce
from dllm_rl.samplers.presets.rcr import Rcr
from dllm_rl.samplers.presets.remdm import Remdm, RemdmLlada
from dllm_rl.samplers.presets.remedi import Remedi
from dllm_rl.samplers.presets.request import Preset, Request
from dllm_rl.samplers.presets.schedule import Scheduled
from dllm_rl.samplers.presets.sdar import Sdar
from dllm_rl.samplers.presets.t2t import T2t
from dllm_rl.samplers.presets.wino import WinoSampler

PRESETS: Mapping[str, type[Preset]] = {
    "llada": Llada,
    "rl": Rl,
    "threshold": FastThreshold,
    "ancestral": AncestralSteps,
    "ass": Ass,
    "dream": Dream,
    "entropy": LowEntropy,
    "eoser": Eoser,
    "eoser_ass": EoserAss,
    "first_hitting": FirstHitting,
    "margin": TopMargin,
    "maskgit": MaskGit,
    "pc": Pc,
    "pc_linear": PcLinear,
    "sdar": Sdar,
    "remdm": Remdm,
    "remdm_llada": RemdmLlada,
    "factor": FastFactor,
    "eb": EbSampler,
    "klass": KlassSampler,
    "localleap": LocalLeapSampler,
    "dus": Dus,
    "planner": Planner,
    "planner_pl": PlannerPlackettLuce,
    "t2t": T2t,
    "wino": WinoSampler,
    "rcr": Rcr,
    "remedi": Remedi,
    "schedule": Scheduled,
}


def preset(name: str, options: Mapping[str, Any]) -> Preset:
    """The preset called `name`, with `options` set.

    Raises:
        RecipeError: there is no such preset, it has no such option, or an option is of the wrong type or value.
    """
    return make("sampler", PRESETS, name, options)


def make_sampler(spec: DiffusionSpec, name: str, options: Mapping[str, Any], request: Request) -> Sampler:
    """The sampler that settings describe.

    Raises:
        RecipeError: unknown sampler or option, or values that do not suit it or the model.
    """
    return replace(preset(name, options).build(spec, request), end_ids=request.end_ids(spec))
