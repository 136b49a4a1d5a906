"""What a run leaves for people: a progress bar, lines of numbers, samples to read, and a curve."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dllm_rl.training.manifest import write_whole
from dllm_rl.training.source import Sample

_HIDDEN = {"epoch", "total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}


class MetricsFile(TrainerCallback):
    """Writes one JSON object a line: `update` and the numbers logged after it."""

    def __init__(self, path: Path, resumed_update: int) -> None:
        self.path = path
        kept = [line for line in read_metrics(path) if line["update"] <= resumed_update] if resumed_update else []
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        numbers = {name: _finite(value) for name, value in logs.items() if name not in _HIDDEN}
        if state.is_world_process_zero and numbers:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"update": state.global_step, **numbers}) + "\n")


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics file; a last line that a crash cut short is left out."""
    return list(_lines(path))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def accuracy_names(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the evaluation accuracies among metrics."""
    names = {name for line in lines for name in line}
    return sorted(name for name in names if name.startswith("eval/") and name.endswith("/accuracy"))


class EvaluateEvery(TrainerCallback):
    """Asks for an evaluation every so many updates, and after the last one."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        due = self.every > 0 and state.global_step % self.every == 0
        control.should_evaluate = due or state.global_step >= state.max_steps
        return control


class Progress(TrainerCallback):
    """A bar with reward and accuracy; a line at every evaluation, samples each quarter of the run."""

    def __init__(self, samples: Callable[[], Sequence[Sample]]) -> None:
        self.samples = samples
        self.bar: tqdm[Any] | None = None
        self.shown: dict[str, str] = {}
        self.start = time.monotonic()
        self.quarter = -1

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="update", dynamic_ncols=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if self.bar is None or not logs:
            return
        for name, label in (("reward/mean", "reward"), ("preference/accuracy", "preferred"), ("loss", "loss")):
            if name in logs:
                self.shown[label] = f"{logs[name]:.3f}"
        self.shown.update({name.split("/")[1]: f"{logs[name]:.3f}" for name in accuracy_names([logs])})
        self.bar.set_postfix(self.shown, refresh=False)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        if self.bar is None:
            return
        shown = ", ".join(
            f"{name.split('/')[1]} accuracy {metrics[name]:.3f} ± {metrics[f'{stem}/std_error']:.3f}"
            for name in accuracy_names([metrics])
            for stem in [name.rpartition("/")[0]]
        )
        reward = f" | reward {self.shown['reward']}" if "reward" in self.shown else ""
        self.bar.write(f"update {state.global_step:>5}{reward} | {shown} | {time.monotonic() - self.start:.0f} s")
        quarter = 4 * state.global_step // state.max_steps
        if quarter > self.quarter and (samples := self.samples()):
            self.bar.write(sample_table(samples))
        self.quarter = quarter

    def close(self) -> None:
        """End the bar's line, so that what is printed next, an error too, has one of its own."""
        if self.bar is not None:
            self.bar.close()


def sample_table(samples: Sequence[Sample], limit: int = 3) -> str:
    """A few completions of a rollout, spread over its prompts, with their rewards, as text."""
    table = Table(title="rollouts", title_justify="left", show_edge=False)
    for heading in ("prompt", "completion", "reward", "advantage"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True, max_width=48)
    for sample in samples[:: max(1, len(samples) // limit)][:limit]:
        prompt, completion = (text.replace("\n", "\\n") for text in (sample.prompt, sample.completion))
        table.add_row(prompt[-48:], completion[:48], f"{sample.reward:.2f}", f"{sample.advantage:+.2f}")
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(table, markup=False)
    return capture.get().rstrip("\n")


class Curve(TrainerCallback):
    """Draws `curve.png` from the metrics file at every evaluation and at the end."""

    def __init__(self, metrics: Path, picture: Path) -> None:
        self.metrics, self.picture = metrics, picture

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            draw_curve([_drawn(line) for line in _lines(self.metrics)], self.picture)

    on_train_end = on_evaluate


def _drawn(line: dict[str, Any]) -> dict[str, Any]:
    """What a curve shows of a line of metrics; all the lines of a long run, whole, would take much memory."""
    return {name: line[name] for name in ("update", "reward/mean", "loss", *accuracy_names([line])) if name in line}


def draw_curve(lines: Sequence[dict[str, Any]], picture: Path) -> None:
    """Reward (or loss, where there is no reward) and accuracies against updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    main = "reward/mean" if any("reward/mean" in line for line in lines) else "loss"
    for name in (main, *accuracy_names(lines)):
        points = [(line["update"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            label = name if name == main else f"{name.split('/')[1]} accuracy (held out)"
            marker = "" if name == main else "o"
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=4, linewidth=1.2)
    axes.set_xlabel("update")
    if main == "reward/mean":
        axes.set_ylabel("reward, accuracy")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(loc="best", frameon=False)
    figure.savefig(picture, dpi=120)
