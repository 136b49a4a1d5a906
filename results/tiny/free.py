"""What is free: samplers that need no training, on the starting weights and on those that CJ-GRPO trained.

Co-GRPO and dUltra learn to take fewer forwards; rules that write as many tokens as the network is sure of take fewer
without learning. Here are these rules at several settings, on the ledger's held-out problems. CJ-GRPO's runs are made
again exactly as the ledger records them, since it keeps no weights.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dllm_rl.evaluation.measure import evaluate_model
from dllm_rl.recipe.load import load_recipe
from dllm_rl.rollouts.engine import RolloutSettings
from results.tiny.ledger import FOLDER, Point, Run
from results.tiny.methods import METHODS, Task
from results.tiny.run import ROOT, run_in

FILE = FOLDER / "free.json"
TRAINED = "cj_grpo"
"""The method whose weights are decoded too: accurate, and not trained to be fast."""


@dataclass(frozen=True, slots=True)
class Way:
    """A sampler and its settings."""

    title: str
    sampler: str
    options: Mapping[str, float]
    tokens_per_step: int | None = None
    """Of an even split; None for samplers that decide by themselves."""

    def settings(self, gen_length: int, steps: int) -> RolloutSettings:
        """Greedy. `steps` is how many the task's recipe takes, for about two positions each."""
        made = None if self.tokens_per_step is None else round(steps * 2 / self.tokens_per_step)
        return RolloutSettings(self.sampler, gen_length, made, temperature=0.0, options=dict(self.options))


def _by(sampler: str, option: str, *values: float) -> tuple[Way, ...]:
    return tuple(Way(f"{sampler}, {option} {value:g}", sampler, {option: value}) for value in values)


WAYS = (
    Way("even split, one a forward", "llada", {}, 1),
    Way("even split, about two a forward", "llada", {}, 2),
    Way("even split, about four a forward", "llada", {}, 4),
    *_by("threshold", "threshold", 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    *_by("factor", "factor", 1.0),
    *_by("eb", "gamma", 0.1, 0.3, 1.0),
    *_by("klass", "threshold", 0.9, 0.6),
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Some weights decoded in one way."""

    task: str
    weights: str
    """The starting ones ("start"), or by the method that trained them."""
    seed: int | None
    """Of that training."""
    way: str
    right: int
    problems: int
    forwards: float

    @property
    def point(self) -> Point:
        return Point(0, self.right, self.problems, self.forwards)


def decode(task: Task, path: Path | str, weights: str, seed: int | None, limit: int | None = None) -> list[Decoded]:
    """Decode weights in every way, on the problems that the task's recipe evaluates on."""
    section = load_recipe(ROOT / task.recipe).eval
    assert section is not None and section.steps is not None, "the ledger's recipes evaluate"
    found = []
    for way in WAYS:
        settings = way.settings(section.gen_length, section.steps)
        many = limit or section.limit
        result = evaluate_model(str(path), section.tasks, settings, limit=many, batch_size=500)[task.name]
        right = round(result.accuracy * result.n)
        found.append(Decoded(task.name, weights, seed, way.title, right, result.n, float(result.nfe)))
    return found


def start(task: Task) -> list[Decoded]:
    """The task's starting weights."""
    model = load_recipe(ROOT / task.recipe).model.path
    return decode(task, ROOT / model, "start", None)


def trained(task: Task, run: Run) -> list[Decoded]:
    """The weights of a run of the ledger, made again with the settings that it records."""
    method = next(method for method in METHODS if method.name == run.method).recorded(run.overrides)
    with tempfile.TemporaryDirectory() as folder:
        run_in(folder, task, method, run.seed, ["eval.every=0"])
        return decode(task, Path(folder, "run"), run.method, run.seed)


def fill(tasks: Sequence[Task], runs: Sequence[Run]) -> list[Decoded]:
    """All of these tasks again; the file is written as the parts end."""
    by_name = {task.name: task for task in tasks}
    found = [each for each in read() if each.task not in by_name]
    found += [each for task in tasks for each in start(task)]
    for run in sorted(runs, key=lambda run: (run.seed, run.task)):
        if run.method == TRAINED and run.task in by_name:
            found += trained(by_name[run.task], run)
            write(found)
            print(f"{run.task}, {run.method}, seed {run.seed}: decoded in {len(WAYS)} ways", flush=True)
    return found


def read(file: Path = FILE) -> list[Decoded]:
    """What the file holds; nothing where there is none."""
    if not file.is_file():
        return []
    names = [field.name for field in fields(Decoded)]
    return [Decoded(**{name: line[name] for name in names}) for line in json.loads(file.read_text(encoding="utf-8"))]


def write(found: Sequence[Decoded], file: Path = FILE) -> None:
    """One line each, with accuracy and interval spelled out for people."""
    spelled = [
        {**asdict(each), "accuracy": each.point.accuracy, "interval": [round(end, 4) for end in each.point.interval]}
        for each in found
    ]
    beside = file.with_suffix(".part")
    beside.write_text("[\n" + ",\n".join(map(json.dumps, spelled)) + "\n]\n", encoding="utf-8")
    beside.replace(file)
