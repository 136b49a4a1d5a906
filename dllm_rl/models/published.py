"""What all families share: a configuration under its published field names, and making transformers know a class."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightConverter, WeightRenaming

from dllm_rl.errors import ModelContractError

NOT_PUBLISHED = ("is_causal", "layer_types", "rope_parameters", "_experts_implementation_internal")
"""Fields of transformers' configurations that the published ones do not have."""


class PublishedConfig:
    """Mix-in before a transformers configuration: published field names outside, transformers' names inside.

    The subclass's `attribute_map` leads from the former to the latter. Attention is bidirectional: what a block-causal
    family may look at is given with each forward.

    Raises:
        ModelContractError: for a feature that the transformers class does not compute.
    """

    architecture: ClassVar[str]
    published_type: ClassVar[str]
    """`model_type` in config.json; the class's own `model_type` must be unique, this one need not be."""
    released: ClassVar[dict[str, Any]]
    """Values of the released checkpoints, under transformers' names: defaults for what a config.json leaves out."""
    required: ClassVar[dict[str, Collection[Any]]]
    """Accepted values of the fields that have to be as they are for the transformers class to compute the same."""
    not_published: ClassVar[tuple[str, ...]] = NOT_PUBLISHED

    attribute_map: ClassVar[dict[str, str]]

    def __init_subclass__(cls, **options: Any) -> None:
        if "__init__" not in cls.__dict__:
            cls.__init__ = PublishedConfig.__init__  # type: ignore[method-assign]  # else a dataclass would write one
        super().__init_subclass__(**options)

    def __init__(self, **fields: Any) -> None:
        fields.pop("model_type", None)
        named = self.named_by_transformers(fields)
        if named.get("head_dim", 0) is None:
            del named["head_dim"]  # the attention classes look for the field, not for its value
        super().__init__(**{**self.released, **named, "is_causal": False})
        self._refuse_unsupported()

    @classmethod
    def named_by_transformers(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Needed before construction: transformers applies aliases after it derived other fields from the defaults."""
        return {cls.attribute_map.get(name, name): value for name, value in fields.items()}

    def _refuse_unsupported(self) -> None:
        rope = self.rope_parameters  # type: ignore[attr-defined]
        wrong = {
            name: found
            for name, accepted in self.required.items()
            if (found := getattr(self, name, rope.get(name, _any_of(accepted)))) not in accepted
        }
        if rope.get("rope_type") != "default":
            wrong["rope_parameters"] = rope
        if wrong:
            expected = {name: _any_of(self.required.get(name, ("default",))) for name in wrong}
            raise ModelContractError(
                f"the {self.architecture} configuration has {wrong}; this library computes only {expected}. "
                "Use a checkpoint without these features"
            )

    def to_dict(self) -> dict[str, Any]:
        """The published fields, so that the published modeling code can read what is saved."""
        fields: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        rope = fields["rope_parameters"]
        names = {name: published for published, name in self.attribute_map.items()}
        published = {names.get(name, name): value for name, value in fields.items() if name not in self.not_published}
        published.update({name: value for name, value in rope.items() if name != "rope_type"})
        published.update(model_type=self.published_type, architectures=[self.architecture])
        return published


def _any_of(accepted: Collection[Any]) -> Any:
    return next(iter(accepted))


def register(config: Any, network: Any, conversions: Sequence[WeightConverter | WeightRenaming] = ()) -> None:
    """Tell transformers of a class, so that its Auto classes find it and files keep the published weight names.

    Conversions are registered under the class's name: under a model type, PEFT would rewrite adapters with them too.
    """
    AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM):
        auto.register(config, network, exist_ok=True)
    if conversions:
        register_checkpoint_conversion_mapping(network.__name__, list(conversions), overwrite=True)


def expert_conversions(model_type: str) -> list[WeightConverter | WeightRenaming]:
    """How transformers' own model reads one tensor per expert into one tensor for all, and writes them back."""
    conversions: list[WeightConverter | WeightRenaming]
    conversions = get_checkpoint_conversion_mapping(model_type)  # type: ignore[no-untyped-call]
    return conversions
