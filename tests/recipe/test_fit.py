"""Samplers, algorithms and heads that do not fit are refused before a model is loaded; names are those there are."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest

from dllm_rl.algorithms import AlgorithmSection, PlannerImitation
from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import RecipeError
from dllm_rl.recipe.fit import check_options, head_settings
from dllm_rl.recipe.load import load_recipe
from dllm_rl.recipe.model import make_model
from dllm_rl.samplers.names import DECIDE_STEPS, FEATURES, HEADS, PARAMETERS, SAMPLERS
from dllm_rl.samplers.presets import PRESETS
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.presets.schedule import Scheduled
from dllm_rl.samplers.revise.base import NOTHING
from dllm_rl.samplers.schedule import learned_parameters
from tests.samplers.needs import NEEDS

BASE: dict[str, Any] = {
    "model": {"path": "toy:llada"},
    "data": {"path": "toy:arithmetic"},
    "reward": "f.py:f",
    "output": "o",
}
CO_GRPO = BASE | {
    "algorithm": {"type": "co_grpo"},
    "model": {"path": "toy:llada", "head": {"type": "schedule"}},
    "rollout": {"sampler": "schedule", "options": {"sigma": 0.5, "learned": "temperature commit"}},
}
DULTRA = BASE | {
    "algorithm": {"type": "dultra"},
    "model": {"path": "toy:llada", "head": {"type": "planner"}},
    "rollout": {"sampler": "planner"},
}
IMITATION = {key: value for key, value in BASE.items() if key != "reward"} | {
    "algorithm": {"type": "planner_imitation"},
    "rollout": {"sampler": "threshold"},
}
CJ_GRPO = BASE | {"algorithm": {"type": "cj_grpo"}, "rollout": {}}


def refusal(tree: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(copy.deepcopy(tree), list(overrides))
    return str(caught.value).removeprefix("recipe: ")


def test_names_are_those_of_the_presets() -> None:
    assert PRESETS.keys() == set(SAMPLERS) and len(set(SAMPLERS)) == len(SAMPLERS)
    assert HEADS.keys() <= set(SAMPLERS)


def test_algorithms_name_samplers_that_exist_and_ask_the_head_they_train() -> None:
    for algorithm in get_args(get_args(AlgorithmSection)[0]):
        assert set(algorithm.samplers or ()) <= set(SAMPLERS)
        assert {HEADS.get(name, algorithm.head) for name in algorithm.samplers or ()} <= {algorithm.head}


def test_a_planner_imitates_every_sampler_that_hides_nothing_again_and_asks_no_head() -> None:
    spec, request = DiffusionSpec(mask_id=9, eos_ids=(8,)), Request(gen_length=8, temperature=1.0)
    built = {name: preset(**NEEDS.get(name, {})).build(spec, request) for name, preset in PRESETS.items()}
    imitable = {name for name, sampler in built.items() if sampler.revise is NOTHING and name not in HEADS}
    assert set(PlannerImitation.samplers or ()) == imitable


def test_samplers_that_decide_their_steps_are_those_that_refuse_a_number() -> None:
    spec, request = DiffusionSpec(mask_id=9, eos_ids=(8,)), Request(gen_length=8, steps=2, temperature=1.0)
    refuse = set()
    for name, preset in PRESETS.items():
        try:
            preset(**NEEDS.get(name, {})).build(spec, request)
        except RecipeError as error:
            assert "decides by itself" in str(error)
            refuse.add(name)
    assert refuse == set(DECIDE_STEPS)


@pytest.mark.parametrize(
    ("tree", "override", "message"),
    [
        (
            CO_GRPO,
            "rollout.sampler=llada",
            "rollout.sampler: co_grpo cannot learn from rollouts of llada; expected s",
        ),
        (DULTRA, "rollout.sampler=rl", "rollout.sampler: dultra cannot learn from rollouts of rl; expected planner"),
        (
            IMITATION,
            "rollout.sampler=wino",
            "rollout.sampler: planner_imitation cannot learn from rollouts of wino",
        ),
        (IMITATION, "rollout.sampler=schedule", "rollout.sampler: schedule asks a schedule head and the model has pla"),
        (DULTRA, "rollout.options={mode: expected}", "rollout.options: mode is 'expected', and dultra learns the law"),
        (CO_GRPO, "rollout.options={learned: commit}", "rollout.options: sigma is 0, which explores no other schedule"),
        (CO_GRPO, "model.head={type: planner}", "model.head.type: co_grpo trains a schedule head, found planner; set"),
        (DULTRA, "model.head={type: schedule}", "model.head.type: dultra trains a planner head, found schedule; set"),
        (DULTRA, "model.head.type=plannr", "model.head.type: unknown plannr. Did you mean planner? One of: planner, s"),
        (DULTRA, "model.head={}", "model.head.type: missing. One of: planner, schedule"),
        (CO_GRPO, "model.head.featurs=3", "model.head.featurs: unknown key. Did you mean features? Keys: type, feat"),
        (CO_GRPO, "model.head.features=14", "model.head.features: found 14, expected 15; leave it out"),
        (CO_GRPO, "model.head.actions=3", "model.head.actions: found 3, expected 2; leave it out"),
        (CO_GRPO, "rollout.options.learned=comit", "rollout.options.learned: unknown comit. Did you mean commit?"),
        (CO_GRPO, "rollout.options.learned=[commit]", "rollout.options.learned: found ['commit'], expected words"),
        (
            CO_GRPO,
            "eval={tasks: [arithmetic], sampler: schedule}",
            "eval.options.learned: found 'commit' and rollout",
        ),
        (CO_GRPO, "eval={tasks: [arithmetic], sampler: planner}", "eval.sampler: planner asks a planner head and the"),
        (CJ_GRPO, "train.head_learning_rate=1e-3", "train.head_learning_rate: cj_grpo trains no policy head; remove"),
        (
            CJ_GRPO,
            "train.stuck_after=59",
            "train.stuck_after: found 59 s, and the reward functions may take 60 s togeth",
        ),
        (
            CJ_GRPO,
            "reward={functions: [f.py:f], workers: -1}",
            "reward.workers: found -1, expected greater than or equal to 0",
        ),
        (DULTRA, "rollout.steps=8", "rollout.steps: planner decides by itself how many steps it takes; leave steps"),
        (CJ_GRPO, "rollout.sampler=rll", "rollout.sampler: unknown rll. Did you mean rl? One of: llada, rl, threshold"),
        (CJ_GRPO, "eval={tasks: [arithmetic], sampler: lada}", "eval.sampler: unknown lada. Did you mean llada?"),
        (
            CJ_GRPO,
            "model.head={type: schedule}",
            "model.head: no sampler of this recipe asks a schedule head; set",
        ),
    ],
)
def test_what_does_not_fit_takes_one_line(tree: dict[str, Any], override: str, message: str) -> None:
    found = refusal(tree, override)
    assert found.startswith(message) and "\n" not in found


@pytest.mark.parametrize(
    ("tree", "override"),
    [
        (CO_GRPO, "rollout.options={sigma: 0, sigma_end: 0.5, learned: commit}"),
        (CO_GRPO, "eval={tasks: [arithmetic], sampler: schedule, options: {learned: commit temperature}}"),
        (CO_GRPO, "model.head=null"),
        (DULTRA, "rollout.options={mode: sample}"),
        (DULTRA, "train.head_learning_rate=1e-3"),
        (CJ_GRPO, "rollout.sampler=planner"),
        (CJ_GRPO, "model.head={type: planner}"),
    ],
)
def test_what_may_fit_is_let_through(tree: dict[str, Any], override: str) -> None:
    load_recipe(copy.deepcopy(tree), [override])


def test_the_watchdog_waits_longer_than_reward_functions_may_take() -> None:
    seconds = lambda *overrides: load_recipe(copy.deepcopy(CJ_GRPO), list(overrides)).stuck_after  # noqa: E731
    assert seconds() == 1800
    assert seconds("reward={functions: [f.py:f], gates: [f.py:g, f.py:h], time_limit: 600}") == 2 * 3 * 600
    assert seconds("train.stuck_after=60") == 60


def test_turns_without_the_schedules_need_no_exploration() -> None:
    load_recipe(copy.deepcopy(CO_GRPO), ["algorithm.schedule_updates=0", "rollout.options={}"])


def test_a_schedule_head_is_as_large_as_its_sampler_needs() -> None:
    settings = head_settings(load_recipe(CO_GRPO))
    assert settings == {"type": "schedule", "features": len(FEATURES), "actions": 2, "width": 64}
    assert head_settings(load_recipe(DULTRA)) == {"type": "planner", "initial_logit": -2.0}
    assert head_settings(load_recipe(CJ_GRPO)) is None
    assert head_settings(load_recipe(copy.deepcopy(CO_GRPO), ["rollout.options={sigma: 1}"])) == settings | {
        "actions": len(learned_parameters(Scheduled().learned.split()))
    }
    assert learned_parameters(PARAMETERS) == PARAMETERS


def test_a_model_made_from_a_recipe_plans_with_such_a_head() -> None:
    recipe = load_recipe(CO_GRPO)
    model = make_model(recipe, base=None)  # type: ignore[arg-type]  # nothing is looked up
    head = model.network.get_submodule("schedule")
    shapes = [tuple(weight.shape) for weight in head.parameters()]
    assert (shapes[0], shapes[-1]) == ((64, len(FEATURES)), (2,))


def test_a_sampler_without_its_head_is_told_once_the_model_is_there() -> None:
    recipe = load_recipe(copy.deepcopy(CJ_GRPO), ["eval={tasks: [arithmetic], sampler: planner}"])
    with pytest.raises(RecipeError, match=r"^eval\.sampler: planner asks a planner head and the model has none; set"):
        make_model(recipe, base=None)  # type: ignore[arg-type]  # nothing is looked up


def test_options_name_the_section_they_are_wrong_in() -> None:
    recipe = load_recipe(copy.deepcopy(CJ_GRPO), ["eval={tasks: [arithmetic], sampler: rcr, options: {rcrr: true}}"])
    with pytest.raises(RecipeError, match=r"^eval\.options: sampler 'rcr' has no option 'rcrr'; did you mean 'rcr'\?"):
        check_options(recipe)
    check_options(load_recipe(CO_GRPO))
