"""What several commands take from their arguments."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_rl.errors import RecipeError

if TYPE_CHECKING:
    from dllm_rl.models.denoiser import DiffusionModel
    from dllm_rl.rollouts.engine import RolloutSettings


GEN_LENGTH = 256


def model_of(arguments: argparse.Namespace) -> DiffusionModel:
    """The model, loaded as asked for."""
    from dllm_rl.models.load import load_model

    return load_model(arguments.model, dtype=arguments.dtype, device=device_of(arguments))


def device_of(arguments: argparse.Namespace) -> str:
    """The device asked for, else an accelerator if there is one, of several processes each its own."""
    import torch

    own = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    return arguments.device or (own if torch.cuda.is_available() else "cpu")


def settings_of(arguments: argparse.Namespace) -> RolloutSettings:
    """How to sample; a mistake is told before a model is loaded."""
    from dllm_rl.recipe.yaml12 import parse
    from dllm_rl.rollouts.engine import RolloutSettings
    from dllm_rl.samplers.presets import preset

    options = {key: parse(value, f"--option {key}") for key, value in pairs_of("--option", arguments.option).items()}
    preset(arguments.sampler, options)  # tells of a mistake before a model is loaded
    return RolloutSettings(
        sampler=arguments.sampler,
        gen_length=GEN_LENGTH if arguments.gen_length is None else arguments.gen_length,
        steps=arguments.steps,
        block_length=arguments.block_length,
        temperature=arguments.temperature,
        cfg_scale=arguments.cfg_scale,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        stop_at_eos=arguments.stop_at_eos,
        cache=arguments.cache,
        options=options,
    )


def pairs_of(flag: str, items: Sequence[str]) -> dict[str, str]:
    """``key=value`` arguments as a dict."""
    pairs = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise RecipeError(f"{flag} {item}: expected key=value")
        pairs[key] = value
    return pairs


def refuse_unwritable(flag: str, out: Path) -> None:
    """Before the model answers, not after: hours of records are not to be lost."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.open("a", encoding="utf-8").close()
    except OSError as error:
        raise RecipeError(f"{flag} {out}: cannot be written: {error}") from error


def refuse_unwritable_folder(flag: str, folder: Path) -> None:
    """As `refuse_unwritable`, of a folder that files will be put in."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write in {folder}")
    except OSError as error:
        raise RecipeError(f"{flag} {folder}: cannot be written: {error}") from error


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Arguments that say how to sample, and on what."""
    parser.add_argument("--sampler", default="llada", help="preset (default: %(default)s)")
    parser.add_argument("--gen-length", type=int, help=f"tokens to write (default: {GEN_LENGTH})")
    parser.add_argument("--steps", type=int, help="denoising steps over all blocks (default: one per token)")
    parser.add_argument("--block-length", type=int, help="tokens per block (default: one block)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--cfg-scale", type=float, default=0.0, help="classifier-free guidance (default: none)")
    parser.add_argument("--top-p", type=float, help="draw from the most probable tokens of this mass (default: all)")
    parser.add_argument("--top-k", type=int, help="draw from this many of the most probable tokens (default: all)")
    parser.add_argument("--stop-at-eos", action="store_true", help="finish with the block that holds an end of text")
    parser.add_argument("--cache", default="none", help="of keys and values (default: %(default)s)")
    parser.add_argument("--option", metavar="KEY=VALUE", action="append", default=[], help="of the preset; repeatable")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="of the weights (default: the checkpoint's)")
    parser.add_argument("--device", help="such as cuda:0 (default: an accelerator if there is one)")
