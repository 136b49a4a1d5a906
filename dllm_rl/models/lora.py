"""LoRA by PEFT: a new adapter on a network, or one that was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights

from dllm_rl.errors import CheckpointError, ModelContractError, one_line
from dllm_rl.models.policy_head import head_of


def add_lora(network: Any, arguments: dict[str, Any], *, allow_dropout: bool = False) -> PeftModel:
    """Wrap the network with a new adapter that changes nothing yet.

    Adapter weights are float32 also on a half-precision base (PEFT's default). They are drawn from a generator of
    their own, so equal arguments give equal adapters on every rank.

    Args:
        arguments: of `peft.LoraConfig`; `target_modules` is "all-linear" by default, which leaves out the head, routers
            and experts. Experts take an adapter as `target_parameters`, such as "mlp.experts.down_proj".
        allow_dropout: whether `lora_dropout` may be positive. A ratio of probabilities computed under two different
            dropout masks is noise, so only supervised training may ask for it.

    Raises:
        ModelContractError: for dropout where it is not allowed, unknown arguments, a target that names no module, or an
            adapter on the output head.
    """
    if arguments.get("lora_dropout") and not allow_dropout:
        raise ModelContractError(
            f"lora_dropout is {arguments['lora_dropout']}; expected 0: log-probabilities under different dropout masks "
            "cannot be compared. Only sft may use dropout"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` would reset every GPU's generator for good
        try:
            wrapped = get_peft_model(network, LoraConfig(**_with_head(network, arguments)))
        except (TypeError, ValueError) as error:
            raise ModelContractError(
                f"lora={arguments} does not make an adapter for this network: {one_line(error)}"
            ) from error
    _refuse_head(wrapped)
    _refuse_unmatched(wrapped, arguments)
    return wrapped


def _with_head(network: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an adapter that trains a policy head whole, beside low-rank changes of the network."""
    named = {"target_modules": "all-linear", **arguments}
    head = head_of(network)
    if head is not None:
        named["modules_to_save"] = [*(named.get("modules_to_save") or []), head]
    return named


def load_adapter(network: Any, folder: str | Path, trainable: bool) -> PeftModel:
    """Wrap the network with a saved adapter.

    Raises:
        CheckpointError: when the adapter is missing or does not fit the network tensor by tensor.
    """
    try:
        wrapped = PeftModel.from_pretrained(network, str(folder), is_trainable=trainable)
        saved = set(load_peft_weights(str(folder), device="cpu"))
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the adapter in {folder} cannot be loaded: {one_line(error)}") from error
    expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if saved != expected:
        raise CheckpointError(
            f"the adapter in {folder} lacks {sorted(expected - saved)[:8]} and has {sorted(saved - expected)[:8]} "
            "that the network has no place for; it was made for another model or under the published module names"
        )
    _refuse_head(wrapped)
    return wrapped


def _refuse_head(wrapped: PeftModel) -> None:
    if isinstance(wrapped.get_base_model().lm_head, BaseTunerLayer):
        raise ModelContractError(
            "the adapter covers the output head, which scores tokens piece by piece; remove lm_head from target_modules"
        )


def _refuse_unmatched(wrapped: PeftModel, arguments: dict[str, Any]) -> None:
    """PEFT is content when one of several targets exists; in models with experts, others often do not."""
    targets = arguments.get("target_modules") or ()
    names: Any = wrapped.base_model.targeted_module_names
    adapted = ["." + name for name in names]
    unmatched = (
        [] if isinstance(targets, str) else [t for t in targets if not any(n.endswith("." + t) for n in adapted)]
    )
    if unmatched:
        leaves = sorted({name.rpartition(".")[2] for name in adapted})
        raise ModelContractError(
            f"no module of this network takes an adapter under the names {unmatched} in target_modules; adapted are "
            f"{leaves}. Remove the others; for experts, whose weights are one tensor, use target_parameters"
        )
