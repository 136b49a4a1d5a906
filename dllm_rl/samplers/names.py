"""What a recipe may say of samplers, known without importing torch."""

from __future__ import annotations

from collections.abc import Mapping

SAMPLERS = (
    *("llada", "rl", "threshold", "ancestral", "ass", "dream", "entropy", "eoser", "eoser_ass", "first_hitting"),
    *("margin", "maskgit", "pc", "pc_linear", "sdar", "remdm", "remdm_llada", "factor", "eb", "klass", "localleap"),
    *("dus", "planner", "planner_pl", "t2t", "wino", "rcr", "remedi", "schedule"),
)
"""Names of the presets."""
HEADS: Mapping[str, str] = {
    "planner": "planner",
    "planner_pl": "planner",
    "remedi": "planner",
    "schedule": "schedule",
}
"""Which head of the model a sampler asks; the others ask none."""
DECIDE_STEPS = (
    "threshold",
    "factor",
    "eb",
    "localleap",
    "dus",
    "first_hitting",
    "planner",
    "t2t",
    "wino",
    "remdm_llada",
)
"""Samplers that find out by themselves how many steps they take, and refuse a number."""
PARAMETERS = ("commit", "temperature", "ranking_temperature", "cfg_scale")
"""What a schedule policy can decide, in the order of its actions."""
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_OF = ("mean", *(f"quantile {q}" for q in QUANTILES))
FEATURES = (
    "share of the block still hidden",
    "share of the completion still hidden",
    "forwards made, as a share of the completion's tokens",
    *(f"log-probability of the likeliest token, {of}" for of in _OF),
    *(f"entropy, {of}" for of in _OF),
)
"""What each number is that a schedule policy is shown; predictions are those of the open positions at temperature 1,
in nats."""
