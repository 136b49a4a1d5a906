from __future__ import annotations

import dataclasses

import pytest
from peft import LoraConfig
from peft.config import PeftConfig
from transformers import TrainingArguments

from dllm_rl.errors import RecipeError
from dllm_rl.recipe import upstream


def test_options_read_from_source_are_those_of_the_class() -> None:
    fields = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    assert set(upstream.training_arguments()) == fields
    inherited = {field.name for field in dataclasses.fields(PeftConfig)}
    own = {field.name for field in dataclasses.fields(LoraConfig) if field.init} - inherited
    assert set(upstream.lora_config()) == own


@pytest.mark.parametrize(
    ("annotation", "value", "fits"),
    [
        ("float", 1, True),
        ("float", "1e-6", False),
        ("float", True, False),
        ("int", 1.0, False),
        ("bool", True, True),
        ("bool", 1, False),
        ("bool | None", None, True),
        ("str | None", 3, False),
        ("dict | str | None", {"a": 1}, True),
        ("IntervalStrategy | str", 3, True),
        ("Optional[int]", "x", True),
    ],
)
def test_plainly_wrong_values_are_seen_and_others_left_to_upstream(annotation: str, value: object, fits: bool) -> None:
    assert upstream.accepts(annotation, value) is fits


def test_a_missing_package_or_class_is_told() -> None:
    with pytest.raises(RecipeError, match="no_such_package_here is not installed"):
        upstream.options("no_such_package_here", "x.py", "X")
    with pytest.raises(RecipeError, match="has no class Nothing"):
        upstream.options("transformers", "training_args.py", "Nothing")
