"""``dllm-rl run | check | show | generate | replay | eval | export | cite``.

Commands import what they need when they run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_rl.errors import DllmRlError, RecipeError

if TYPE_CHECKING:
    from dllm_rl.evaluation.metrics import EvalResult
    from dllm_rl.models.denoiser import DiffusionModel
    from dllm_rl.recipe.build import RunResult
    from dllm_rl.rollouts.engine import RolloutSettings
    from dllm_rl.rollouts.generate_text import Completed, GeneratedText
    from dllm_rl.rollouts.text import Prompt
    from dllm_rl.samplers.drivers.base import Driven, Driver


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 2, after one line on stderr, for a mistake in what the user gave. Other failures raise.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except DllmRlError as error:
        print(f"dllm-rl: {error}", file=sys.stderr)
        return 2
    return 0


def run_as_script(argv: Sequence[str]) -> int:
    """Run the recipe ``argv[0]`` with the overrides after it, as ``python recipe.yaml key=value`` does."""
    if sys.path and sys.path[0].endswith((".yaml", ".yml")):
        del sys.path[0]  # the interpreter puts there the script it imports from
    return main(["run", *argv])


def _run(arguments: argparse.Namespace) -> None:
    from dllm_rl.recipe.load import load_recipe

    load_recipe(arguments.recipe, arguments.overrides)  # tells of a mistake at once, before anything heavy is imported
    from dllm_rl.recipe.build import train

    _recorded(train)(arguments.recipe, arguments.overrides)


def _recorded(function: Callable[..., RunResult]) -> Callable[..., RunResult | None]:
    """Under torchrun, put a failing rank's own traceback into the launcher's summary."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return function
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(function)


def _check(arguments: argparse.Namespace) -> None:
    from dllm_rl.recipe.check import check
    from dllm_rl.recipe.load import load_recipe, recipe_file

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    for line in check(recipe, recipe_file(arguments.recipe).parent):
        print(line)
    print(f"{arguments.recipe}: a valid recipe, {recipe.algorithm.type} of {recipe.model.path} on {recipe.data.path}")


def _show(arguments: argparse.Namespace) -> None:
    from dllm_rl.recipe.load import load_recipe
    from dllm_rl.recipe.show import as_json, as_yaml

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    print(as_json(recipe) if arguments.format == "json" else as_yaml(recipe), end="")


def _cite(arguments: argparse.Namespace) -> None:
    from dllm_rl.recipe.load import load_recipe

    print(load_recipe(arguments.recipe, arguments.overrides).algorithm.citation)


def _generate(arguments: argparse.Namespace) -> None:
    prompts = [_prompt(arguments)] if arguments.prompts is None else _prompts(arguments.prompts)
    for flag in ("trace", "html"):
        if (path := getattr(arguments, flag)) is not None:
            _refuse_unwritable(f"--{flag}", Path(path))
    settings, driver = _settings(arguments), _driver(arguments)
    model = _model(arguments)
    from dllm_rl.rollouts.generate_text import complete, complete_live
    from dllm_rl.rollouts.terminal import draws_in_place

    terminal, started = draws_in_place(sys.stdout), time.monotonic()
    run = partial(complete_live, stream=sys.stdout) if terminal and driver is None else partial(complete, driver=driver)
    done = run(
        model,
        prompts,
        settings,
        chat=not arguments.raw,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
    )
    seconds = time.monotonic() - started
    _write_trace(arguments, done, model, settings)
    _print_texts(done.texts, as_lines=arguments.prompts is not None, terminal=terminal)
    _print_facts(done, seconds, arguments.gen_length)


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


def _print_texts(texts: Sequence[GeneratedText], as_lines: bool, terminal: bool) -> None:
    """The text of one prompt as it is; of a file, JSON lines that `eval --score` reads, or headed texts to look at."""
    from dllm_rl.rollouts.view import visible

    for index, row in enumerate(texts):
        if terminal:
            heading = f"--- {index}: {visible(row.prompt)[:60]}\n" if as_lines else ""
            print(heading + visible(row.completion, keep="\n\t"))  # nothing a model writes may steer the terminal
        elif as_lines:
            print(json.dumps({"index": index, **asdict(row)}, ensure_ascii=False))
        else:
            print(row.completion)


def _print_facts(done: Completed, seconds: float, gen_length: int) -> None:
    """On stderr, so that the text is all there is on stdout."""
    from dllm_rl.diffusion.trajectory import Op

    tokens = int((done.trajectory.events.op == Op.WRITE).sum())
    forwards = sum(row.forwards for row in done.texts)
    rate = f"{tokens / forwards:.2f} tokens per forward, " if forwards else ""
    facts = f"{tokens} tokens written in {forwards} forwards, {rate}{seconds:.1f} s"
    if endless := sum(not row.finished for row in done.texts):
        which = "" if len(done.texts) == 1 else f" in {endless} of {len(done.texts)} rows"
        facts += f"; no end of text within --gen-length {gen_length}{which}"
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


def _replay(arguments: argparse.Namespace) -> None:
    from dllm_rl.rollouts.replay import write_replay
    from dllm_rl.rollouts.trace_file import read_trace

    trace, out = read_trace(Path(arguments.trace)), Path(arguments.out)
    _refuse_unwritable("-o", out)
    write_replay(out, trace)
    print(f"{out}: {len(trace.rows)} rows of {trace.gen_length} tokens, to be opened in a browser")


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


def _model(arguments: argparse.Namespace) -> DiffusionModel:
    from dllm_rl.models.load import load_model

    return load_model(arguments.model, dtype=arguments.dtype, device=_device(arguments))


def _device(arguments: argparse.Namespace) -> str:
    import torch

    return arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")


def _settings(arguments: argparse.Namespace) -> RolloutSettings:
    from dllm_rl.recipe.yaml12 import parse
    from dllm_rl.rollouts.engine import RolloutSettings
    from dllm_rl.samplers.presets import preset

    options = {key: parse(value, f"--option {key}") for key, value in _pairs("--option", arguments.option).items()}
    preset(arguments.sampler, options)  # tells of a mistake before a model is loaded
    return RolloutSettings(
        sampler=arguments.sampler,
        gen_length=arguments.gen_length,
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


def _driver(arguments: argparse.Namespace) -> Driver[Driven] | None:
    from dllm_rl.recipe.yaml12 import parse
    from dllm_rl.samplers.drivers import make_driver

    given = _pairs("--driver-option", arguments.driver_option)
    if arguments.driver is None:
        if given:
            raise RecipeError(f"--driver-option {arguments.driver_option[0]}: there is no --driver to take it")
        return None
    options = {key: parse(value, f"--driver-option {key}") for key, value in given.items()}
    return make_driver(arguments.driver, options)


def _eval(arguments: argparse.Namespace) -> None:
    tasks, data = arguments.tasks.split(","), _pairs("--data", arguments.data)
    if unknown := data.keys() - set(tasks):
        raise RecipeError(f"--data {min(unknown)}: not among --tasks {arguments.tasks}")
    if (arguments.score is None) == (arguments.model is None):
        raise RecipeError("eval: give a model that answers, or --score FILE with completions; one of the two")
    if arguments.out is not None and len(tasks) > 1:
        raise RecipeError(f"--out {arguments.out}: takes the records of one task, and --tasks names {len(tasks)}")
    if arguments.out is not None:
        _refuse_unwritable("--out", Path(arguments.out))
    results = _answer(arguments, tasks, data) if arguments.score is None else _score(arguments, tasks, data)
    for task, result in results.items():
        print(f"{task}: accuracy {result.accuracy:.4f} +- {result.std_error:.4f} (n {result.n})")
        if arguments.out is not None:
            from dllm_rl.evaluation.run import write_records

            write_records(Path(arguments.out), result.records)


def _refuse_unwritable(flag: str, out: Path) -> None:
    """Before the model answers, not after: hours of records are not to be lost."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.open("a", encoding="utf-8").close()
    except OSError as error:
        raise RecipeError(f"{flag} {out}: cannot be written: {error}") from error


def _score(arguments: argparse.Namespace, tasks: list[str], data: dict[str, str]) -> dict[str, EvalResult]:
    from dllm_rl.evaluation.run import score_file

    if len(tasks) != 1:
        raise RecipeError(f"--score {arguments.score}: holds completions of one task, and --tasks names {len(tasks)}")
    return {tasks[0]: score_file(tasks[0], Path(arguments.score), data.get(tasks[0]))}


def _answer(arguments: argparse.Namespace, tasks: list[str], data: dict[str, str]) -> dict[str, EvalResult]:
    from dllm_rl.evaluation.run import evaluate_model

    settings = _settings(arguments)
    results: dict[str, EvalResult] = {}
    for group in [[task] for task in tasks] if data else [tasks]:  # rows of one's own belong to a single task
        results |= evaluate_model(
            arguments.model,
            group,
            settings,
            data=data.get(group[0]),
            limit=arguments.limit,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            dtype=arguments.dtype,
            device=_device(arguments),
        )
    return results


def _export(arguments: argparse.Namespace) -> None:
    from dllm_rl.models.export import export_official

    export_official(arguments.source, arguments.out)
    print(f"{arguments.out}: written under the names of the published modeling code")


def _pairs(flag: str, items: Sequence[str]) -> dict[str, str]:
    """``key=value`` arguments as a dict."""
    pairs = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise RecipeError(f"{flag} {item}: expected key=value")
        pairs[key] = value
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dllm-rl", description="Post-training of diffusion language models.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        added.set_defaults(command=function)
        return added

    for name, function, text in (
        ("run", _run, "train as a recipe says, in this process; `accelerate launch RECIPE` starts several"),
        ("check", _check, "say what is wrong with a recipe, without loading anything"),
        ("show", _show, "print a recipe with every default and what each value means"),
        ("cite", _cite, "print the reference of a recipe's method, as BibTeX"),
    ):
        added = command(name, function, text)
        added.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a run's recipe.json")
        added.add_argument("overrides", metavar="KEY.PATH=VALUE", nargs="*", help="changes, such as train.max_steps=10")
        if name == "show":
            added.add_argument("--format", choices=("yaml", "json"), default="yaml")
    _add_generate(command("generate", _generate, "complete prompts, and watch it happen"))
    replay = command("replay", _replay, "make a page that replays a trace")
    replay.add_argument("trace", metavar="TRACE", help="a file that `generate --trace` wrote")
    replay.add_argument("-o", "--out", metavar="FILE", required=True, help="the page, a .html file")
    _add_eval(command("eval", _eval, "measure a model, or score completions in a file"))
    export = command("export", _export, "rewrite saved weights for other code")
    export.add_argument("source", metavar="RUN_OR_ADAPTER", help="folder of a run, an adapter or a model")
    export.add_argument("out", metavar="OUT", help="new folder")
    export.add_argument(
        "--official-names", action="store_true", required=True, help="use the names of the published modeling code"
    )
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub id, folder of weights or folder of a run")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt")
    prompt.add_argument("--prompt-file", metavar="FILE", help="a text file that is the prompt")
    prompt.add_argument(
        "--prompts", metavar="FILE", help="a .jsonl file (or .json, .csv, .parquet) with a prompt a row"
    )
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    parser.add_argument("--batch-size", type=int, default=64, help="prompts per forward (default: %(default)s)")
    parser.add_argument("--trace", metavar="FILE", help="write everything that happened, as JSON")
    parser.add_argument("--html", metavar="FILE", help="write a page that replays it")
    parser.add_argument("--driver", metavar="NAME", help="best_of_n, smc, look_ahead or mcts (default: one rollout)")
    parser.add_argument(
        "--driver-option", metavar="KEY=VALUE", action="append", default=[], help="of the driver; repeatable"
    )
    _add_sampling(parser)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="hub id, folder of weights or folder of a run")
    parser.add_argument(
        "--tasks", metavar="NAMES", required=True, help="comma-separated; gsm8k, or a file such as mine.py"
    )
    parser.add_argument("--score", metavar="FILE", help="a .jsonl file of completions to score instead of a model's")
    parser.add_argument("--data", metavar="TASK=PATH", action="append", default=[], help="rows of a task; repeatable")
    parser.add_argument("--limit", type=int, help="use only the first examples")
    parser.add_argument("--batch-size", type=int, default=64, help="completions per forward (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="write a .jsonl line for every example, when there is one task")
    _add_sampling(parser)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sampler", default="llada", help="preset (default: %(default)s)")
    parser.add_argument("--gen-length", type=int, default=256, help="tokens to write (default: %(default)s)")
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
