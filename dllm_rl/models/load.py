"""Load a model strictly: what is missing, unexpected or mismatched is an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedConfig
from transformers.utils import logging
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_bitsandbytes_available

from dllm_rl.errors import CheckpointError, RecipeError, one_line
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.families import family_of
from dllm_rl.models.hollow import hollow_network
from dllm_rl.models.lora import add_lora, load_adapter
from dllm_rl.models.policy_head import HEADS, POLICY_HEAD, attach_head, head_of, read_settings
from dllm_rl.models.save import BASE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
ADAPTER_CONFIG = "adapter_config.json"
FINAL = "final"
"""Where a finished run keeps its weights, under its output folder."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def load_model(
    path: str | Path,
    *,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    lora: dict[str, Any] | None = None,
    adapter: str | Path | None = None,
    trainable: bool = False,
    lora_dropout_allowed: bool = False,
    attn_implementation: str | None = None,
    tokenizer: str | Path | None = None,
    quantization: str | None = None,
    revision: str | None = None,
    head: dict[str, Any] | None = None,
    reads: bool = True,
) -> DiffusionModel:
    """Load a diffusion language model.

    Args:
        path: a folder or hub id in the published format, an adapter's folder, or the output folder of a run.
        dtype: of the weights; "auto" is the checkpoint's own.
        lora: arguments of `peft.LoraConfig` for a new adapter; see `dllm_rl.models.lora.add_lora`.
        adapter: folder or hub id of an adapter to put on top of `path`.
        trainable: whether a loaded adapter goes on training; its weights are frozen otherwise.
        lora_dropout_allowed: for supervised training only; see `add_lora`.
        attn_implementation: transformers' name of an attention kernel; None is its default, sdpa.
        tokenizer: where the tokenizer is, if not with the weights.
        quantization: "nf4" for 4-bit base weights (needs bitsandbytes and a GPU).
        head: a policy head that it must have, `{"type": "planner", ...}`; new unless the weights come with one.
        reads: whether to read the base's weights; without, it is a place for them, see `dllm_rl.models.hollow`.

    Raises:
        CheckpointError: when files are missing or do not belong together.
        ModelContractError: when the checkpoint asks for something this library does not compute.
        RecipeError: when there is no such device, or nothing to quantize with.
    """
    source, adapter = _base_and_adapter(path, adapter)
    if lora is not None and adapter is not None:
        raise CheckpointError(f"got both lora and adapter={adapter}; a new adapter on top of another is not supported")
    fields = _fields(source, revision)
    family = family_of(fields, source)
    network = _network(
        family.network,
        fields,
        source,
        dtype=dtype,
        device=device,
        revision=revision,
        attn_implementation=attn_implementation,
        quantization=quantization,
        reads=reads,
    )
    tokens = _tokenizer(tokenizer, [adapter, source], revision, network.config)
    spec = family.spec(network.config, tokens)
    _give_head(network, None if adapter is None else read_settings(adapter), head)
    if adapter is not None:
        network = load_adapter(network, adapter, trainable)
    if lora is not None:
        network = add_lora(network, lora, allow_dropout=lora_dropout_allowed)
    return DiffusionModel(network.eval(), spec, tokens)


def _base_and_adapter(path: str | Path, adapter: str | Path | None) -> tuple[str, str | None]:
    source = resolve(path)
    if not (Path(source) / ADAPTER_CONFIG).is_file():
        return source, None if adapter is None else resolve(adapter)
    if adapter is not None:
        raise CheckpointError(f"{source} is an adapter, and adapter={adapter} is another; give the base as path")
    return _base_of(Path(source)), source


def _give_head(network: Any, saved: dict[str, Any] | None, wanted: dict[str, Any] | None) -> None:
    """The head that the adapter comes with, or a new one where none is there yet."""
    if saved is not None and head_of(network) is None:
        attach_head(network, saved)
    found = head_of(network)
    if wanted is not None and found is None:
        attach_head(network, wanted)
    elif wanted is not None and found != wanted.get("type"):
        raise CheckpointError(
            f"the model has a {found} head and head={wanted} asks for another; a model has one head, start from one "
            "without"
        )
    elif wanted is not None:
        _refuse_another_size(getattr(network.config, POLICY_HEAD), wanted)


def _refuse_another_size(has: dict[str, Any], wanted: dict[str, Any]) -> None:
    """What a schedule is shown and decides is what it learned; other settings are those of a new head."""
    for name in ("features", "actions"):
        if wanted.get(name) != has.get(name) and name in wanted:
            raise CheckpointError(
                f"the model's {has['type']} head has {has.get(name)} {name} and {wanted[name]} are asked for; give the "
                "sampler's option `learned` as it was trained, or start from a model without a head"
            )


def resolve(path: str | Path) -> str:
    """The folder that holds the weights, absolute, or a hub id as it is."""
    folder = Path(path)
    if folder.is_dir():
        final = folder / FINAL
        return str((final if final.is_dir() and not _holds_weights(folder) else folder).resolve())
    if folder.is_absolute() or str(path).startswith((".", "~")) or str(path).count("/") != 1:
        raise CheckpointError(f"there is no folder {path}; expected a checkpoint's folder, a run's output or a hub id")
    return str(path)


def _holds_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))


def _base_of(folder: Path) -> str:
    """The base of an adapter: the one kept with it, else the one it names."""
    if (folder / BASE).is_dir():
        return str(folder / BASE)
    base = json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    if not base:
        raise CheckpointError(
            f"{folder}/{ADAPTER_CONFIG} names no base model; load_model(BASE, adapter={str(folder)!r})"
        )
    try:
        return resolve(base)
    except CheckpointError as error:
        raise CheckpointError(
            f"the adapter in {folder} was made on {base}, which is not there; load_model(BASE, adapter={str(folder)!r})"
        ) from error


def base_config(folder: Path) -> tuple[dict[str, Any], str]:
    """Fields of the config.json of an adapter's base, and where they are."""
    base = _base_of(folder)
    return _fields(base, None), base


def _fields(source: str, revision: str | None) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = PreTrainedConfig.get_config_dict(source, revision=revision)[0]
    except (OSError, ValueError) as error:
        place = "" if Path(source).is_dir() else f"there is no folder {source} here, and as a hub id it fails: "
        raise CheckpointError(f"{place}the config.json of {source} cannot be read: {one_line(error)}") from error
    if not fields:
        raise CheckpointError(
            f"{source} is no model: there is no config.json. Expected a folder in the published format, an adapter, "
            f"the output of a finished run (with {FINAL}/ inside) or a hub id"
        )
    return fields


def _network(
    network_class: Any,
    fields: dict[str, Any],
    source: str,
    *,
    dtype: str,
    device: str | torch.device,
    attn_implementation: str | None,
    quantization: str | None,
    revision: str | None,
    reads: bool,
) -> Any:
    quantized = None if quantization is None else _quantization(quantization, device)
    _refuse_device(device)
    config = network_class.config_class.from_dict(fields)
    if dtype != "auto" and dtype not in DTYPES:
        raise CheckpointError(f"dtype is {dtype!r}; expected 'auto' or one of {sorted(DTYPES)}")
    kernels = {
        "attn_implementation": attn_implementation,
        "experts_implementation": "eager" if dtype == "float64" else None,  # grouped products stop at float32
    }
    if not reads:
        return hollow_network(network_class, config, DTYPES.get(dtype, torch.float32), **kernels)
    try:
        with _without_report():
            network, found = network_class.from_pretrained(
                source,
                config=config,
                dtype=DTYPES.get(dtype, "auto"),
                **kernels,
                quantization_config=quantized,
                device_map=None if quantization is None else {"": device},
                revision=revision,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are listed; refused below
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"the weights in {source} cannot be read: {one_line(error)}") from error
    wrong = {kind.removesuffix("_keys"): sorted(map(str, keys))[:8] for kind, keys in found.items() if keys}
    if wrong:
        raise CheckpointError(
            f"the weights in {source} do not fit its config.json, tensors (first 8 of each kind): {wrong}. "
            "Expected exactly one tensor for every parameter; the folder is incomplete or mixes checkpoints"
        )
    if config.tie_word_embeddings and network.lm_head.weight is not network.model.embed_tokens.weight:
        raise CheckpointError(
            f"the config.json of {source} ties the output head to the embedding, and the weights hold a head of its "
            "own; set weight_tying to false if the head is wanted, else remove it"
        )
    return network if quantization else network.to(device)


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from printing a table of what does not fit: the error that follows says it."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _refuse_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(f"device is {str(device)!r}, which cannot be used here: {one_line(error)}") from error


def _quantization(name: str, device: str | torch.device) -> BitsAndBytesConfig:
    if name != "nf4":
        raise CheckpointError(f"quantization is {name!r}; expected 'nf4'")
    if not torch.cuda.is_available() or torch.device(device).type != "cuda":
        raise RecipeError(f"quantization nf4 needs a GPU, and the model is to be on {str(device)!r}; drop quantization")
    if not is_bitsandbytes_available():
        raise RecipeError("quantization nf4 needs bitsandbytes; pip install bitsandbytes, or drop quantization")
    return four_bits()


def four_bits() -> BitsAndBytesConfig:
    """QLoRA's storage of the frozen weights. Heads stay whole: `TokenHead` scores in float32, policy heads are exact.

    Source: Dettmers et al., https://arxiv.org/abs/2305.14314.
    """
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", *HEADS],
    )


def _tokenizer(
    wanted: str | Path | None, otherwise: list[str | Path | None], revision: str | None, config: Any
) -> Any | None:
    """The one wanted, else the first found, or None where there are no files of one: only text commands need it.

    Code that comes with a checkpoint is never run.
    """
    for place in otherwise if wanted is None else [wanted]:
        if place is None or not _has_tokenizer(str(place), revision):
            continue
        try:
            return AutoTokenizer.from_pretrained(str(place), revision=revision, config=config, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"the tokenizer in {place} cannot be loaded: {one_line(error)}") from error
    if wanted is not None:
        raise CheckpointError(f"there is no tokenizer in {wanted}; expected {' or '.join(TOKENIZER_FILES)}")
    return None


def _has_tokenizer(place: str, revision: str | None) -> bool:
    found = (
        cached_file(place, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        for name in TOKENIZER_FILES
    )
    return any(found)
