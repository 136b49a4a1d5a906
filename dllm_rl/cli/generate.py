"""``dllm-rl generate`` and ``dllm-rl replay``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_rl.cli.common import add_sampling, model_of, pairs_of, refuse_unwritable, settings_of
from dllm_rl.errors import RecipeError

if TYPE_CHECKING:
    from dllm_rl.models.denoiser import DiffusionModel
    from dllm_rl.rollouts.engine import RolloutSettings
    from dllm_rl.rollouts.generate_json import GeneratedJson
    from dllm_rl.rollouts.generate_text import Completed
    from dllm_rl.rollouts.text import Prompt
    from dllm_rl.samplers.drivers.base import Driven, Driver


ROOM = ("value_tokens", "null_text")


def generate(arguments: argparse.Namespace) -> int:
    """Complete prompts; 1 if a value does not fit its schema."""
    prompts = [_prompt(arguments)] if arguments.prompts is None else _prompts(arguments.prompts)
    settings, schema, driver = settings_of(arguments), _schema(arguments), _driver(arguments)
    for flag in ("trace", "html"):
        if (path := getattr(arguments, flag)) is not None:
            refuse_unwritable(f"--{flag}", Path(path))
    model = model_of(arguments)
    from dllm_rl.rollouts.generate_json import complete_json
    from dllm_rl.rollouts.generate_text import complete, complete_live
    from dllm_rl.rollouts.terminal import draws_in_place

    terminal, started = draws_in_place(sys.stdout), time.monotonic()
    run = partial(complete_live, stream=sys.stdout) if terminal and driver is None else partial(complete, driver=driver)
    how = {"chat": not arguments.raw, "seed": arguments.seed, "batch_size": arguments.batch_size}
    rows: list[GeneratedJson] = []
    if schema is None:
        done = run(model, prompts, settings, **how)
    else:
        rows, done = complete_json(model, prompts, schema, settings, run, **how, **_given(arguments, ROOM))
    seconds, as_lines = time.monotonic() - started, arguments.prompts is not None
    _write_trace(arguments, done, model, settings)
    print_texts([row.record for row in rows] or list(map(asdict, done.texts)), as_lines, terminal)
    _print_facts(done, seconds)
    return _tell_violations(rows, as_lines)


def _schema(arguments: argparse.Namespace) -> Any:
    """What --schema names, tried before a model is loaded."""
    if arguments.schema is None:
        if given := _given(arguments, ROOM):
            raise RecipeError(f"{_flag(min(given))}: is about the values of a --schema, and there is none")
        return None
    if given := _given(arguments, ("gen_length", "stop_at_eos")):
        raise RecipeError(
            f"{_flag(min(given))}: has no meaning with --schema, whose skeleton is written to its end; leave it out"
        )
    from dllm_rl.rollouts.json_schema import compile_schema, read_schema

    schema = read_schema(Path(arguments.schema))
    compile_schema(schema, **_given(arguments, ROOM[:1]))
    return schema


def _driver(arguments: argparse.Namespace) -> Driver[Driven] | None:
    from dllm_rl.recipe.yaml12 import parse
    from dllm_rl.samplers.drivers import make_driver

    given = pairs_of("--driver-option", arguments.driver_option)
    if arguments.driver is None:
        if given:
            raise RecipeError(f"--driver-option {arguments.driver_option[0]}: there is no --driver to take it")
        return None
    options = {key: parse(value, f"--driver-option {key}") for key, value in given.items()}
    return make_driver(arguments.driver, options)


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those of the arguments that were not left out."""
    given = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in given.items() if value is not None and value is not False}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _tell_violations(rows: Sequence[GeneratedJson], as_lines: bool) -> int:
    """On stderr, each value that does not fit its schema; 1 if there are any."""
    for index, row in enumerate(rows):
        for one in row.violations:
            print(f"dllm-rl: {f'row {index}, ' if as_lines else ''}{one}", file=sys.stderr)
    return int(any(row.violations for row in rows))


def _write_trace(
    arguments: argparse.Namespace, done: Completed, model: DiffusionModel, settings: RolloutSettings
) -> None:
    if arguments.trace is None and arguments.html is None:
        return
    from dllm_rl.rollouts.generate_text import trace_of_text
    from dllm_rl.rollouts.replay import write_replay
    from dllm_rl.rollouts.trace_file import write_trace

    driver = None if arguments.driver is None else " ".join([arguments.driver, *arguments.driver_option])
    trace = trace_of_text(done, model, settings, name=arguments.model, seed=arguments.seed, driver=driver)
    if arguments.trace is not None:
        write_trace(Path(arguments.trace), trace)
    if arguments.html is not None:
        write_replay(Path(arguments.html), trace)


def print_texts(texts: Sequence[Mapping[str, Any]], as_lines: bool, terminal: bool) -> None:
    """The text of one prompt as it is; of a file, JSON lines that `eval --score` reads, or headed texts to look at."""
    from dllm_rl.rollouts.view import visible

    for index, row in enumerate(texts):
        if terminal:
            heading = f"--- {index}: {visible(row['prompt'])[:60]}\n" if as_lines else ""
            print(heading + visible(row["completion"], keep="\n\t"))  # nothing a model writes may steer the terminal
        elif as_lines:
            print(json.dumps({"index": index, **row}, ensure_ascii=False))
        else:
            print(row["completion"])


def _print_facts(done: Completed, seconds: float) -> None:
    """On stderr, so that the text is all there is on stdout."""
    from dllm_rl.diffusion.trajectory import Op

    tokens = int((done.trajectory.events.op == Op.WRITE).sum())
    forwards = sum(row.forwards for row in done.texts)
    rate = f"{tokens / forwards:.2f} tokens per forward, " if forwards else ""
    facts = f"{tokens} tokens written in {forwards} forwards, {rate}{seconds:.1f} s"
    if endless := sum(not row.finished for row in done.texts):
        which = "" if len(done.texts) == 1 else f" in {endless} of {len(done.texts)} rows"
        facts += f"; no end of text within {done.trajectory.gen_length} tokens{which}"
    print(f"dllm-rl: {facts}", file=sys.stderr)


def _prompts(path: str) -> list[Prompt]:
    """The column `prompt` of a file: texts or chat messages."""
    from dllm_rl.rollouts.rows import read_rows

    rows = read_rows(path)
    for index, row in enumerate(rows):
        if not row.get("prompt"):
            columns = ", ".join(row) or "no columns"
            raise RecipeError(f"--prompts {path}: row {index} has {columns}; expected a prompt that is not empty")
        if not isinstance(row["prompt"], str) and not _are_messages(row["prompt"]):
            raise RecipeError(
                f"--prompts {path}: row {index}: prompt is {str(row['prompt'])[:80]}; expected text, or messages with "
                "role and content"
            )
    return [row["prompt"] for row in rows]


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, dict) and all(isinstance(part.get(key), str) for key in ("role", "content")) for part in value
    )


def _prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt_file is None:
        prompt, name = str(arguments.prompt), "--prompt"
    else:
        file = Path(arguments.prompt_file)
        if not file.is_file():
            raise RecipeError(f"--prompt-file: no file {file}")
        try:
            prompt, name = file.read_text(encoding="utf-8"), f"--prompt-file {file}"
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"--prompt-file {file}: cannot be read as UTF-8 text: {error}") from error
    if not prompt.strip():
        raise RecipeError(f"{name}: the prompt is empty; give some text")
    return prompt


def replay(arguments: argparse.Namespace) -> None:
    """Make a page of a trace."""
    from dllm_rl.rollouts.replay import write_replay
    from dllm_rl.rollouts.trace_file import read_trace

    trace, out = read_trace(Path(arguments.trace)), Path(arguments.out)
    refuse_unwritable("-o", out)
    write_replay(out, trace)
    print(f"{out}: {len(trace.rows)} rows of {trace.gen_length} tokens, to be opened in a browser")


def add_generate(parser: argparse.ArgumentParser) -> None:
    """The arguments of `generate`."""
    parser.add_argument("model", metavar="MODEL", help="hub id, folder of weights or folder of a run")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt")
    prompt.add_argument("--prompt-file", metavar="FILE", help="a text file that is the prompt")
    prompt.add_argument(
        "--prompts", metavar="FILE", help="a .jsonl file (or .json, .csv, .parquet) with a prompt a row"
    )
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    parser.add_argument("--batch-size", type=int, default=64, help="prompts per forward (default: %(default)s)")
    parser.add_argument("--schema", metavar="FILE", help="write JSON that fits the schema in this .json file")
    parser.add_argument("--value-tokens", type=int, help="room of a value without x-tokens in the schema (default: 16)")
    parser.add_argument("--null-text", metavar="TEXT", help="what unused room is filled with (default: <none>)")
    parser.add_argument("--trace", metavar="FILE", help="write everything that happened, as JSON")
    parser.add_argument("--html", metavar="FILE", help="write a page that replays it")
    parser.add_argument("--driver", metavar="NAME", help="best_of_n, smc, look_ahead or mcts (default: one rollout)")
    parser.add_argument(
        "--driver-option", metavar="KEY=VALUE", action="append", default=[], help="of the driver; repeatable"
    )
    add_sampling(parser)
