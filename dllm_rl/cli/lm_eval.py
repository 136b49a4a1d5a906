"""``dllm-rl lm-eval``."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dllm_rl.cli.common import add_sampling, model_of, refuse_unwritable, settings_of


def lm_eval(arguments: argparse.Namespace) -> None:
    """Run tasks of lm-eval and print what they gave."""
    from dllm_rl.evaluation.lm_eval import DiffusionLM, lines_of, require, run_lm_eval

    require()
    settings = settings_of(arguments)
    if arguments.out is not None:
        refuse_unwritable("--out", Path(arguments.out))
    how = {"num_draws": arguments.num_draws, "batch_size": arguments.batch_size, "seed": arguments.seed}
    results = run_lm_eval(
        DiffusionLM(model_of(arguments), settings, **how),
        arguments.tasks.split(","),
        include_path=None if arguments.include_path is None else Path(arguments.include_path),
        limit=arguments.limit,
        num_fewshot=arguments.num_fewshot,
        apply_chat_template=arguments.apply_chat_template,
        allow_unsandboxed=arguments.allow_unsandboxed,
    )
    protocol = _protocol(arguments, {**asdict(settings), "options": dict(settings.options), **how})
    print("\n".join(lines_of(results)))
    print("  " + " | ".join(f"{name} {value}" for name, value in protocol.items()))
    if arguments.out is not None:
        content = {"protocol": protocol, **results}
        Path(arguments.out).write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def _protocol(arguments: argparse.Namespace, how: dict[str, Any]) -> dict[str, Any]:
    from importlib.metadata import version

    from dllm_rl.evaluation.revision import revision_of

    return {
        "model": arguments.model,
        "revision": revision_of(arguments.model),
        "dtype": arguments.dtype,
        "chat_template": arguments.apply_chat_template,
        **how,
        "lm_eval": version("lm-eval"),
    }


def add_lm_eval(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lm-eval`."""
    parser.add_argument("model", metavar="MODEL", help="hub id, folder of weights or folder of a run")
    parser.add_argument("--tasks", metavar="NAMES", required=True, help="comma-separated, of lm-eval or --include-path")
    parser.add_argument("--include-path", metavar="FOLDER", help="tasks of your own, as lm-eval's YAML files")
    parser.add_argument("--limit", type=int, help="use only the first examples of each task")
    parser.add_argument("--num-fewshot", type=int, help="solved examples in the prompt (default: the task's)")
    parser.add_argument("--apply-chat-template", action="store_true", help="put prompts in the model's chat template")
    parser.add_argument("--num-draws", type=int, default=128, help="views per log-likelihood (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=64, help="prompts or views per forward (default: %(default)s)"
    )
    parser.add_argument(
        "--allow-unsandboxed", action="store_true", help="let tasks run the code they are answered in this process"
    )
    parser.add_argument("--out", metavar="FILE", help="write everything as JSON")
    add_sampling(parser)
