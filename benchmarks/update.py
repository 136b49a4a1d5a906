"""One update of diffu-GRPO, VRPO and CJ-GRPO: seconds and peak memory against views, completion length and vocabulary.

    python -m benchmarks.update                # about ten minutes on two idle CPU cores; Linux, for the peak memory

A random LLaDA of small width (64, two layers), so that what is compared is everything but its matrices. An update is a
forward and backward of one micro-batch and a step of AdamW; scores of the behaviour and of the reference are given.
The plain side is `benchmarks.plain_trainer`, on the same views. First both are checked to give the same loss and
gradient on a small case.

Memory is the peak of resident memory during an update above what stood before it, when weights, gradients, the
optimiser's state and the views were allocated. Seconds are medians, both sides in turn, by the clock and of CPU. All in
one process which gives freed tensors back at once: that costs our side, whose tensors are small, a little time. The
plain side is left out where it would take more than 5 GB.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.cases import SMALL, Shape, assert_equal_updates, make_case, make_model
from dllm_rl.models.denoiser import DiffusionModel

BASE = {
    "diffu_grpo": Shape("diffu_grpo", 6, 1, prompt=200, completion=256, views_per_forward=6),
    "vrpo": Shape("vrpo", 4, 4, prompt=32, completion=128, views_per_forward=4),
    "cj_grpo": Shape("cj_grpo", 2, 16, prompt=32, completion=64),
}
"""diffu-GRPO as d1 runs it on a device: one prompt, six completions. CJ-GRPO: two completions in 16 steps."""
VIEWS = {"diffu_grpo": [2, 6, 12], "vrpo": [1, 4, 16], "cj_grpo": [4, 16, 64]}
LENGTHS = {"diffu_grpo": [64, 128, 256], "vrpo": [32, 64, 128], "cj_grpo": [16, 32, 64]}
VOCABULARIES = [4_096, 32_768, 126_464]
SHARED = replace(BASE["diffu_grpo"], shared_draws=True)
"""`draws_for: group`: what is shown of a prompt's completions is one canvas."""
TITLES = {"diffu_grpo": "diffu-GRPO", "vrpo": "VRPO", "cj_grpo": "CJ-GRPO"}
COPIES = {"diffu_grpo": 2.2, "vrpo": 1.6, "cj_grpo": 1.2}
"""About how many copies of all logits the plain side holds at its peak."""
PLAIN_LIMIT_GB = 5.0

Point = dict[str, Any]


def with_views(shape: Shape, views: int) -> Shape:
    """diffu-GRPO has one view of each completion: more views are more completions."""
    return replace(shape, sequences=views) if shape.method == "diffu_grpo" else replace(shape, views=views)


def sweeps() -> list[Shape]:
    """Every shape to be measured, once."""
    found = dict.fromkeys([*BASE.values(), SHARED])
    for method, base in BASE.items():
        found |= dict.fromkeys(with_views(base, views) for views in VIEWS[method])
        found |= dict.fromkeys(replace(base, completion=length) for length in LENGTHS[method])
        found |= dict.fromkeys(replace(base, vocabulary=size) for size in VOCABULARIES)
    return list(found)


def plain_fits(shape: Shape) -> bool:
    return COPIES[shape.method] * shape.logits_gb <= PLAIN_LIMIT_GB


@cache
def network(vocabulary: int, hidden: int) -> tuple[DiffusionModel, torch.optim.Optimizer]:
    """A model and its optimiser, with gradients and the optimiser's state allocated."""
    model = make_model(Shape("", 1, 1, 1, 1, vocabulary=vocabulary, hidden=hidden))
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=1e-6)
    for weight in model.network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    return model, optimizer


def updates(shape: Shape) -> dict[str, Callable[[], None]]:
    """An update by either side, after one on a small batch."""
    model, optimizer = network(shape.vocabulary, shape.hidden)

    def update(gradient: Callable[[], float]) -> None:
        gradient()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    few = make_case(replace(shape, sequences=2, views=1, prompt=4, completion=4), model)
    update(few.ours)
    update(few.plain)
    case = make_case(shape, model)
    return {"plain": lambda: update(case.plain), "dllm_rl": lambda: update(case.ours)}


def measured(shape: Shape, repeats: int) -> Point:
    """Both sides at one shape, or ours alone."""
    sides = updates(shape)
    if not plain_fits(shape):
        del sides["plain"]
    costs = measure.interleaved(sides, repeats)
    point: Point = {"shape": asdict(shape)}
    for name, each in costs.items():
        point[name] = measure.medians(each) | {"peak_mb": max(cost.peak_mb for cost in each)}
    if "plain" in costs:
        point |= measure.times_faster(costs["plain"], costs["dllm_rl"])
        point["share_of_peak_memory"] = point["dllm_rl"]["peak_mb"] / point["plain"]["peak_mb"]
    print(json.dumps(point), file=sys.stderr, flush=True)
    return point


def growth(points: list[Point], method: str) -> float:
    """The largest of our peaks over all numbers of views, over the one with the fewest."""
    peaks: list[float] = [at(points, with_views(BASE[method], views))["dllm_rl"]["peak_mb"] for views in VIEWS[method]]
    return max(peaks) / peaks[0]


def at(points: list[Point], shape: Shape) -> Point:
    return next(point for point in points if point["shape"] == asdict(shape))


def draw(points: list[Point], path: Path) -> None:
    """Memory above, seconds below; a column for views, one for length, one for vocabulary."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 3, sharex="col", sharey="row", gridspec_kw={"wspace": 0.08})
    columns = (
        ("views: completions (diffu-GRPO),\ndraws of each text (VRPO), steps (CJ-GRPO)", VIEWS, with_views),
        ("completion length, tokens", LENGTHS, lambda shape, n: replace(shape, completion=n)),
        ("vocabulary, ids", dict.fromkeys(BASE, VOCABULARIES), lambda shape, n: replace(shape, vocabulary=n)),
    )
    for column, (label, values, changed) in enumerate(columns):
        for row, number in enumerate(("peak_mb", "cpu_seconds")):
            for colour, method in zip(("#0072b2", "#d55e00", "#009e73"), BASE, strict=True):
                line = [(n, at(points, changed(BASE[method], n))) for n in values[method]]
                for side, style in (("plain", "--o"), ("dllm_rl", "-s")):
                    shown = [(n, found[side][number]) for n, found in line if side in found]
                    name = f"{TITLES[method]}, {'plain' if side == 'plain' else 'dllm_rl'}"
                    axes[row][column].loglog(
                        *zip(*shown, strict=True), style, color=colour, markersize=4, label=name, linewidth=1.4
                    )
            axes[row][column].grid(alpha=0.3, which="both")
        ticks = sorted({n for each in values.values() for n in each})
        axes[1][column].set_xticks(ticks, [f"{n:,}" for n in ticks])
        axes[1][column].minorticks_off()
        axes[1][column].set_xlabel(label)
    axes[0][0].set_ylabel("peak memory of an update\nabove weights and optimiser, MB")
    axes[1][0].set_ylabel("CPU seconds an update,\nall threads")
    figure.suptitle("One update at width 64; vocabulary 126,464 where it is not the axis. Plain runs up to 5 GB")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=110)


def report(points: list[Point]) -> str:
    rows = []
    for point in points:
        shape, both = Shape(**point["shape"]), "times_faster" in point
        ours, plain = point["dllm_rl"], point.get("plain", {})
        not_run = f"(about {COPIES[shape.method] * shape.logits_gb * 1000:,.0f}: not run)"
        rows.append(
            (
                TITLES[shape.method] + ", shared draws" * shape.shared_draws,
                f"{shape.sequences} x {shape.views}",
                f"{shape.prompt} + {shape.completion}",
                f"{shape.vocabulary:,}",
                f"{plain['peak_mb']:,.0f}" if both else not_run,
                f"{ours['peak_mb']:,.0f}",
                f"{point['share_of_peak_memory']:.3f}" if both else "",
                f"{plain['seconds']:.2f}" if both else "",
                f"{ours['seconds']:.2f}",
                f"{point['times_faster']:.1f}" if both else "",
                f"{point['times_faster_cpu']:.1f}" if both else "",
            )
        )
    head = ["method", "sequences x views", "prompt + completion", "vocabulary", "plain, MB", "dllm_rl, MB", "share"]
    return measure.table([*head, "plain, s", "dllm_rl, s", "times faster", "in CPU time"], rows)


def quick(shape: Shape) -> Shape:
    """The same comparison at a size that takes a moment."""
    return replace(shape, vocabulary=500, prompt=8, completion=32)


def main() -> None:
    parser = measure.options(__doc__, "one small shape of each method")
    parser.add_argument("--only", choices=["measure"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps([measured(shape, arguments.repeats) for shape in sweeps()]))
        return
    for shape in SMALL.values():
        assert_equal_updates(shape)
    if arguments.quick:
        print(report([measured(quick(shape), arguments.repeats) for shape in (*BASE.values(), SHARED)]))
        return
    found = measure.facts(f"python -m benchmarks.update --repeats {arguments.repeats}")
    measure.refuse_little_memory()
    options = ["--only", "measure", "--repeats", str(arguments.repeats)]
    points = measure.in_own_process("benchmarks.update", options, measure.TWO_THREADS | measure.LIVE_MEMORY)
    print(report(points))
    found |= {"growth_over_views": {method: growth(points, method) for method in VIEWS}, "points": points}
    measure.write("update", found, arguments.out)
    draw(points, arguments.out / "update.png")


if __name__ == "__main__":
    main()
