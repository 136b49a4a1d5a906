"""Rollout speed: seconds a forward, tokens a CPU second and peak memory against the published loop, written plainly.

    python -m benchmarks.rollout               # about five minutes on two CPU cores; Linux, for the peak memory

A random LLaDA of small width, d1's rollout settings in small: temperature 0.9, blocks of 32, two tokens a forward. The
plain side is `benchmarks.reference`: LLaDA's loop, noise in float64 for every position and every token. Against it the
preset "llada", the same law, and "rl", which the recipes train on and whose likelihood is exact. First greedy decoding
is checked to give the same tokens on both sides. All forwards of the plain side cost the same, so it makes two a block
and its speed at two tokens a forward follows; ours makes them all.

Memory is the peak of resident memory during the rollout above what stood before it. Everything runs in one process
which gives freed tensors back at once: that costs our side, whose tensors are small, a little time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import measure

BLOCK = 32
PLAIN_STEPS_A_BLOCK = 2
SIDES = ("plain", "llada", "rl")
Point = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A batch of rollouts."""

    completions: int = 2
    prompt: int = 64
    length: int = 64
    vocabulary: int = 126_464

    @property
    def tokens(self) -> int:
        return self.completions * self.length


BASE = Shape()
COMPLETIONS, LENGTHS, VOCABULARIES = [1, 2, 4], [32, 64, 128], [4_096, 32_768, 126_464]


def sweeps() -> list[Shape]:
    """Every shape to be measured, once."""
    shapes = [replace(BASE, completions=count) for count in COMPLETIONS]
    shapes += [replace(BASE, length=length) for length in LENGTHS]
    shapes += [replace(BASE, vocabulary=size) for size in VOCABULARIES]
    return list(dict.fromkeys(shapes))


def rollouts(shape: Shape, temperature: float) -> dict[str, tuple[Callable[[], Any], int]]:
    """Each side's rollout, and how many forwards it makes."""
    import torch

    from benchmarks.cases import Shape as Update
    from benchmarks.cases import make_model
    from benchmarks.reference import reference_generate
    from dllm_rl.rng import sample_keys
    from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings

    model = make_model(Update("", 1, 1, shape.prompt, shape.length, vocabulary=shape.vocabulary))
    generator = torch.Generator().manual_seed(4)
    prompt = torch.randint(0, shape.vocabulary - 2, (shape.completions, shape.prompt), generator=generator)
    keys = sample_keys(0, torch.arange(shape.completions))
    blocks, block = max(1, shape.length // BLOCK), min(BLOCK, shape.length)
    steps, few = shape.length // 2, PLAIN_STEPS_A_BLOCK * blocks
    greedy = temperature == 0

    def plain() -> Any:
        return reference_generate(
            model.network,
            prompt,
            steps=steps if greedy else few,
            gen_length=shape.length,
            block_length=block,
            temperature=temperature,
            mask_id=model.spec.mask_id,
        )

    def ours(sampler: str) -> Callable[[], Any]:
        engine = LocalEngine(
            model,
            RolloutSettings(
                sampler=sampler, gen_length=shape.length, steps=steps, block_length=block, temperature=temperature
            ),
        )
        return lambda: engine.generate(prompt.tolist(), keys)

    return {"plain": (plain, few), "llada": (ours("llada"), steps), "rl": (ours("rl"), steps)}


def assert_equal_rollouts() -> None:
    """Greedy decoding writes the same tokens on both sides.

    Raises:
        AssertionError: it does not.
    """
    shape = Shape(prompt=7, length=16, vocabulary=200)
    sides = rollouts(shape, temperature=0.0)
    written = sides["plain"][0]()[:, shape.prompt :].tolist()
    found = sides["llada"][0]().completions
    assert written == found, f"the plain loop wrote {written}, the library {found}"


def measured(shape: Shape, repeats: int) -> Point:
    import torch

    warm = rollouts(replace(shape, length=4, prompt=4, completions=1), temperature=0.9)
    sides = rollouts(shape, temperature=0.9)
    with torch.no_grad():
        for run, _ in warm.values():
            run()
        costs = measure.interleaved({name: run for name, (run, _) in sides.items()}, repeats)
    point: Point = {"shape": asdict(shape)}
    for name, (_, forwards) in sides.items():
        times = measure.medians(costs[name])
        point[name] = {
            "seconds_per_forward": times["seconds"] / forwards,
            "cpu_seconds_per_forward": times["cpu_seconds"] / forwards,
            "tokens_per_cpu_second": 2 * shape.completions * forwards / times["cpu_seconds"],
            "peak_mb": max(cost.peak_mb for cost in costs[name]),
        }
    for name in SIDES[1:]:
        faster = measure.times_faster(costs["plain"], costs[name])
        share = sides[name][1] / sides["plain"][1]
        point[name] |= {each: value * share for each, value in faster.items()}
    print(point, file=sys.stderr, flush=True)
    return point


def draw(points: list[Point], path: Path) -> None:
    """Tokens a second above, peak memory below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(2, 3, sharex="col", sharey="row", gridspec_kw={"wspace": 0.08})
    columns = (
        ("completions in the batch", COMPLETIONS, "completions"),
        ("completion length, tokens", LENGTHS, "length"),
        ("vocabulary, ids", VOCABULARIES, "vocabulary"),
    )
    names = {"plain": "the published loop, plain", "llada": "llada, the same law", "rl": "rl, exact likelihood"}
    for column, (label, values, field) in enumerate(columns):
        chosen = [next(p for p in points if p["shape"] == asdict(replace(BASE, **{field: n}))) for n in values]
        for row, number in enumerate(("tokens_per_cpu_second", "peak_mb")):
            for side, style, colour in zip(SIDES, ("--o", "-s", "-^"), ("#0072b2", "#d55e00", "#009e73"), strict=True):
                axes[row][column].loglog(
                    values,
                    [point[side][number] for point in chosen],
                    style,
                    color=colour,
                    markersize=5,
                    label=names[side],
                )
            axes[row][column].grid(alpha=0.3, which="both")
        axes[1][column].set_xticks(values, [f"{n:,}" for n in values])
        axes[1][column].minorticks_off()
        axes[1][column].set_xlabel(label)
    axes[0][0].set_ylabel("tokens a CPU second,\ntwo tokens a forward")
    axes[1][0].set_ylabel("peak memory of a rollout\nabove the weights, MB")
    base = f"{BASE.completions} completions of {BASE.length} tokens, vocabulary {BASE.vocabulary:,}"
    figure.suptitle(f"Rollouts at width 64; {base} where not the axis")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def report(points: list[Point]) -> str:
    rows = []
    for point in points:
        shape = Shape(**point["shape"])
        for name in SIDES:
            side = point[name]
            faster = "" if name == "plain" else f"{side['times_faster']:.1f} ({side['times_faster_cpu']:.1f})"
            rows.append(
                (
                    f"{shape.completions} x {shape.length}",
                    f"{shape.vocabulary:,}",
                    name,
                    f"{side['seconds_per_forward']:.3f}",
                    f"{side['tokens_per_cpu_second']:.1f}",
                    faster,
                    f"{side['peak_mb']:,.0f}",
                )
            )
    head = ["completions x tokens", "vocabulary", "side", "seconds a forward", "tokens a CPU second"]
    return measure.table([*head, "times faster (in CPU time)", "peak MB above the weights"], rows)


def main() -> None:
    parser = measure.options(__doc__, "one small shape")
    parser.add_argument("--only", choices=["measure"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps([measured(shape, arguments.repeats) for shape in sweeps()]))
        return
    assert_equal_rollouts()
    if arguments.quick:
        print(report([measured(Shape(prompt=8, length=16, vocabulary=200), arguments.repeats)]))
        return
    found = measure.facts(f"python -m benchmarks.rollout --repeats {arguments.repeats}")
    measure.refuse_little_memory()
    options = ["--only", "measure", "--repeats", str(arguments.repeats)]
    points = measure.in_own_process("benchmarks.rollout", options, measure.TWO_THREADS | measure.LIVE_MEMORY)
    print(report(points))
    measure.write("rollout", found | {"points": points}, arguments.out)
    draw(points, arguments.out / "rollout.png")


if __name__ == "__main__":
    main()
