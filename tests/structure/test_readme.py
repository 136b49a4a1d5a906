"""The commands of the documentation are commands that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dllm_rl.cli import _parser
from dllm_rl.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in re.findall(
            r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
        ):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith(("accelerate launch", "dllm-rl ", "make ", "./.ci", ".ci/")):
                    yield page.name, line


COMMANDS = list(commands())


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_in_the_documentation_exists(page: str, command: str) -> None:
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{re.escape(word)}:", targets, flags=re.MULTILINE) for word in words[1:])
    elif words[0] == "dllm-rl":
        _parser().parse_args(words[1:])
    elif words[0] == "accelerate":
        recipe = next(word for word in words[2:] if word.endswith(".yaml") and "/accelerate/" not in word)
        if (ROOT / recipe).is_file():
            load_recipe(ROOT / recipe, words[words.index(recipe) + 1 :])
        else:
            assert re.fullmatch(r"(my|recipes/NAME|.*/mine).*", recipe), f"{page}: no recipe {recipe}"
        configurations = [word for word in words if "/accelerate/" in word]
        assert all((ROOT / word).is_file() for word in configurations)
    else:
        assert (ROOT / words[0]).is_file()
