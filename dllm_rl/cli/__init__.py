"""``dllm-rl run | check | show | generate | replay | eval | compare | lm-eval | overdenoised | export | cite``.

Commands import what they need when they run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

from dllm_rl.cli.evaluate import add_compare, add_eval, compare, evaluate
from dllm_rl.cli.failing import as_one_of_several, say
from dllm_rl.cli.generate import add_generate, generate, replay
from dllm_rl.cli.lm_eval import add_lm_eval, lm_eval
from dllm_rl.cli.overdenoised import add_overdenoised, overdenoised
from dllm_rl.errors import DllmRlError, RunStoppedError

EXIT_STOPPED = 75
"""Of a run that a signal stopped, with a checkpoint: EX_TEMPFAIL of sysexits.h, "try again later"."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 2, after one line on stderr, for a mistake in what the user gave; 75 after one line for a run
        that a signal stopped, with a checkpoint; 1 if a model wrote what does not fit the schema it was given. Other
        failures raise.
    """
    arguments = _parser().parse_args(argv)
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return arguments.command(arguments) or 0
    except RunStoppedError as stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a launcher signals the other processes when the first one ends
        if os.environ.get("RANK", "0") == "0":
            print(f"dllm-rl: {stop}", file=sys.stderr)
        return EXIT_STOPPED
    except DllmRlError as error:
        say(str(error))
        return 2


def run_as_script(argv: Sequence[str]) -> int:
    """Run the recipe ``argv[0]`` with the overrides after it, as ``python recipe.yaml key=value`` does."""
    if sys.path and sys.path[0].endswith((".yaml", ".yml")):
        del sys.path[0]  # the interpreter puts there the script it imports from
    return main(["run", *argv])


def _run(arguments: argparse.Namespace) -> None:
    from dllm_rl.recipe.load import load_recipe

    load_recipe(arguments.recipe, arguments.overrides)  # tells of a mistake at once, before anything heavy is imported
    from dllm_rl.recipe.build import train

    as_one_of_several(lambda: train(arguments.recipe, arguments.overrides))


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


def _export(arguments: argparse.Namespace) -> None:
    from dllm_rl.models.export import export_merged, export_official

    if arguments.merged:
        export_merged(arguments.source, arguments.out)
        print(f"{arguments.out}: a whole model, under the names of the published modeling code")
        return
    export_official(arguments.source, arguments.out)
    print(f"{arguments.out}: written under the names of the published modeling code")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dllm-rl", description="Post-training of diffusion language models.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
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
    add_generate(command("generate", generate, "complete prompts, and watch it happen"))
    page = command("replay", replay, "make a page that replays a trace")
    page.add_argument("trace", metavar="TRACE", help="a file that `generate --trace` wrote")
    page.add_argument("-o", "--out", metavar="FILE", required=True, help="the page, a .html file")
    add_eval(command("eval", evaluate, "measure a model, or score completions in a file"))
    add_compare(command("compare", compare, "say whether two evaluations differ, example by example"))
    add_lm_eval(command("lm-eval", lm_eval, "run tasks of lm-eval, which the extra `eval` installs"))
    add_overdenoised(
        command("overdenoised", overdenoised, "find rows that a model had right on the way to a wrong end")
    )
    export = command("export", _export, "rewrite saved weights for other code")
    export.add_argument("source", metavar="RUN_OR_ADAPTER", help="folder of a run, an adapter or a model")
    export.add_argument("out", metavar="OUT", help="new folder")
    way = export.add_mutually_exclusive_group(required=True)
    way.add_argument("--official-names", action="store_true", help="use the names of the published modeling code")
    way.add_argument("--merged", action="store_true", help="likewise, the adapter added to its base: a whole model")
    return parser
