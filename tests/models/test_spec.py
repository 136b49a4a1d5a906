"""Constants of a model from its configuration and tokenizer."""

from __future__ import annotations

import pytest

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import ModelContractError
from dllm_rl.models.llada import LladaConfig
from dllm_rl.models.spec import spec_of
from dllm_rl.toys.tokenizer import character_tokenizer


def config(**changes: object) -> LladaConfig:
    special = {"mask_token_id": 7, "eos_token_id": 3, "pad_token_id": 3}
    return LladaConfig(**{"vocab_size": 8, "embedding_size": 10, **special, **changes})


def test_without_a_tokenizer_rows_beyond_the_vocabulary_are_forbidden() -> None:
    assert spec_of(config(), None) == DiffusionSpec(mask_id=7, eos_ids=(3,), forbidden_ids=(7, 8, 9))


def test_with_a_tokenizer_what_it_lacks_is_forbidden() -> None:
    assert spec_of(config(vocab_size=10), character_tokenizer("ab")).forbidden_ids == (7, 8, 9)


def test_several_ends_keep_their_order_and_an_end_of_turn_is_not_one() -> None:
    assert spec_of(config(eos_token_id=[3, 1]), None).eos_ids == (3, 1)
    assert spec_of(config(), character_tokenizer("ab")).eos_ids == (3,)
    assert spec_of(config(eos_token_id=None), None).eos_ids == ()


@pytest.mark.parametrize("change", [{"mask_token_id": None}, {"mask_token_id": 10}, {"eos_token_id": [3, 10]}])
def test_special_ids_lie_in_the_vocabulary(change: dict[str, object]) -> None:
    with pytest.raises(ModelContractError, match=f"{next(iter(change))} is"):
        spec_of(config(**change), None)
