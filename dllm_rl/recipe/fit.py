"""Whether a recipe's samplers, its algorithm and the head of its model fit together. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dllm_rl.errors import RecipeError
from dllm_rl.recipe.explain import suggestion
from dllm_rl.samplers.names import DECIDE_STEPS, FEATURES, HEADS, PARAMETERS, SAMPLERS

if TYPE_CHECKING:
    from dllm_rl.recipe.schema import DecodingSection, Recipe


def check_samplers(recipe: Recipe) -> None:
    """Refuse what could only fail, once a model is loaded or after some updates.

    Raises:
        ValueError: an unknown sampler, steps for one that decides them, a sampler that the algorithm cannot learn from
            or that asks another head than the model's, or a schedule head of another size than its sampler needs.
    """
    algorithm, head = recipe.algorithm, recipe.model.head
    if algorithm.head is not None and head is not None and head.type != algorithm.head:
        raise ValueError(
            f"model.head.type: {algorithm.type} trains a {algorithm.head} head, found {head.type}; "
            f"set model.head={{type: {algorithm.head}}}"
        )
    for section, decoding in _decoding(recipe):
        name = decoding.sampler
        if name not in SAMPLERS:
            raise ValueError(
                f"{section}.sampler: unknown {name}.{suggestion(name, SAMPLERS)} One of: {', '.join(SAMPLERS)}"
            )
        if decoding.steps is not None and name in DECIDE_STEPS:
            raise ValueError(f"{section}.steps: {name} decides by itself how many steps it takes; leave steps out")
    has = head.type if head is not None else algorithm.head
    if has is not None:  # else the weights may come with one
        check_heads(recipe, has)
    _check_rollout(recipe)
    head_settings(recipe)


def check_heads(recipe: Recipe, has: str | None) -> None:
    """Refuse samplers that ask another head than the model has.

    Raises:
        ValueError: which sampler, and what it asks.
    """
    for section, decoding in _decoding(recipe):
        wanted = HEADS.get(decoding.sampler)
        if wanted is not None and wanted != has:
            raise ValueError(
                f"{section}.sampler: {decoding.sampler} asks a {wanted} head and the model has {has or 'none'}; set "
                f"model.head={{type: {wanted}}}, start from a model that has one, or choose another sampler"
            )


def _check_rollout(recipe: Recipe) -> None:
    algorithm, rollout = recipe.algorithm, recipe.rollout
    if rollout is None:
        return
    if algorithm.samplers is not None and rollout.sampler not in algorithm.samplers:
        raise ValueError(
            f"rollout.sampler: {algorithm.type} cannot learn from rollouts of {rollout.sampler}; expected "
            f"{'one of ' if len(algorithm.samplers) > 1 else ''}{', '.join(algorithm.samplers)}"
        )
    try:
        algorithm.check_options(rollout.options)
    except ValueError as error:
        raise ValueError(f"rollout.options: {error}") from None


def head_settings(recipe: Recipe) -> dict[str, Any] | None:
    """The head that the model is to have, with numbers in place of what the recipe leaves to its sampler.

    Raises:
        ValueError: a schedule head of another size than its sampler needs, or with no sampler to say its size.
    """
    if recipe.model.head is None:
        return None
    settings = recipe.model.head.model_dump()
    if recipe.model.head.type == "schedule":
        for name, right in (("features", len(FEATURES)), ("actions", len(_learned(recipe)))):
            if settings[name] is None:
                settings[name] = right
            elif settings[name] != right:
                raise ValueError(f"model.head.{name}: found {settings[name]}, expected {right}; leave it out")
    return settings


def _learned(recipe: Recipe) -> list[str]:
    """What the samplers of this recipe have a schedule head decide; all the same, since the model has one head."""
    named: dict[str, list[str]] = {}
    for section, decoding in _decoding(recipe):
        if decoding.sampler == "schedule":
            named[f"{section}.options.learned"] = _words(f"{section}.options.learned", decoding.options)
    if not named:
        raise ValueError("model.head: no sampler of this recipe asks a schedule head; set rollout.sampler to schedule")
    (first, words), *others = named.items()
    for place, more in others:
        if set(more) != set(words):
            raise ValueError(
                f"{place}: found {' '.join(more)!r} and {first} {' '.join(words)!r}; the model has one schedule head, "
                "so give both the same"
            )
    return words


def _words(place: str, options: dict[str, Any]) -> list[str]:
    learned = options.get("learned", "commit")
    if not isinstance(learned, str) or not learned.split():
        raise ValueError(f"{place}: found {learned!r}, expected words, such as 'commit temperature'")
    for word in learned.split():
        if word not in PARAMETERS:
            raise ValueError(
                f"{place}: unknown {word}.{suggestion(word, PARAMETERS)} Expected some of: {', '.join(PARAMETERS)}"
            )
    return learned.split()


def check_options(recipe: Recipe) -> None:
    """Make the samplers' options, which takes torch but no model.

    Raises:
        RecipeError: a sampler has no such option, or an option is of the wrong type or value.
    """
    for section, decoding in _decoding(recipe):
        if decoding.options:
            from dllm_rl.samplers.presets import preset

            try:
                preset(decoding.sampler, decoding.options)
            except RecipeError as error:
                raise RecipeError(f"{section}.options: {error}") from error


def _decoding(recipe: Recipe) -> Iterator[tuple[str, DecodingSection]]:
    if recipe.rollout is not None:
        yield "rollout", recipe.rollout
    if recipe.eval is not None:
        yield "eval", recipe.eval
