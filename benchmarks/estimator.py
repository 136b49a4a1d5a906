"""Variance of every ELBO estimator at eight forwards, exact: all hidden sets of an answer are scored once.

    python benchmarks/estimator.py                     # trains the quickstart first; about five minutes of CPU time
    python benchmarks/estimator.py --run runs/mine     # a quickstart run with train.save_steps=5 that is there already

Nothing but problems and answers is sampled: each answer's variance under each corruptor follows from the scores of its
2^n - 1 hidden sets (`laws.py`). Intervals are 95%, from 2,000 resamples of the problems. Also: the variance of the
gradient, the dependence on the answer's length, and policy minus reference with shared and with independent draws.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import dllm_rl  # noqa: E402
from benchmarks import laws  # noqa: E402
from benchmarks.estimator_figure import draw  # noqa: E402
from benchmarks.laws import Array, Law  # noqa: E402
from dllm_rl.diffusion import Sequences, Transform, Views, score_views, sequences_from_ids  # noqa: E402
from dllm_rl.rollouts.text import encode_prompt  # noqa: E402
from dllm_rl.toys import arithmetic, column_sum, small_sudoku  # noqa: E402

FORWARDS = 8
LAWS: dict[str, Callable[[int, int], Law]] = {
    "fixed count, independent": laws.fixed_count_independent,
    "fixed count, stratified": laws.fixed_count,
    "antithetic levels": laws.antithetic,
    "complementary": laws.complementary,
    "balanced": laws.balanced,
    "Bernoulli, floor 0.1": lambda n, draws: laws.bernoulli(n, draws, 1e-1),
    "Bernoulli, floor 0.01": lambda n, draws: laws.bernoulli(n, draws, 1e-2),
    "Bernoulli, floor 0.001": lambda n, draws: laws.bernoulli(n, draws, 1e-3),
    "Bernoulli, floor 0.0001": lambda n, draws: laws.bernoulli(n, draws, 1e-4),
}
PLAIN = "fixed count, independent"


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of one length to problems."""

    prompts: list[list[int]]
    completions: list[list[int]]

    def last(self, n: int) -> Answers:
        """The last n tokens, what stands before them being given."""
        prompts = [p + c[: len(c) - n] for p, c in zip(self.prompts, self.completions, strict=True)]
        return Answers(prompts, [c[len(c) - n :] for c in self.completions])

    def first_problems(self, count: int) -> Answers:
        return Answers(self.prompts[:count], self.completions[:count])


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    problems: int = 200
    long_problems: int = 100
    gradients: int = 20
    lengths: tuple[int, ...] = (2, 4, 6, 8, 10)
    updates: tuple[int, ...] = (5, 10, 20, 50, 100)


QUICK = Size(problems=6, long_problems=3, gradients=1, lengths=(2, 3), updates=(1, 2))


def right_answers(model: dllm_rl.DiffusionModel, toy: Any, column: str, count: int) -> Answers:
    """Held-out problems with the answer that is right, and its end."""
    rows, end = toy.rows("test", count=count), model.spec.eos_ids[0]
    return Answers(
        [encode_prompt(model.tokenizer, row["prompt"]) for row in rows],
        [[*encode_prompt(model.tokenizer, row[column]), end] for row in rows],
    )


def sampled_answers(model: dllm_rl.DiffusionModel, right: Answers) -> Answers:
    """One answer of as many ids to each problem, written one token at a time in random order, at temperature 1."""
    length = len(right.completions[0])
    out = dllm_rl.generate(model, right.prompts, sampler="first_hitting", gen_length=length, temperature=1.0)
    return Answers(right.prompts, out.completions)


def views_of_all_sets(answers: Answers, mask_id: int) -> tuple[Sequences, Views]:
    """Every hidden set of every answer, sets by their number (bit i is token i)."""
    sequences = sequences_from_ids(answers.prompts, answers.completions, 0)
    n = len(answers.completions[0])
    bits = (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1
    hidden = torch.nn.functional.pad(bits.bool(), (sequences.tokens.shape[1] - n, 0)).repeat(len(sequences), 1)
    row = torch.arange(len(sequences)).repeat_interleave(2**n)
    return sequences, Views(sequences.tokens[row].masked_fill(hidden, mask_id), hidden, hidden.double(), row)


@torch.no_grad()
def token_tables(model: dllm_rl.DiffusionModel, answers: Answers, transform: Transform | None = None) -> Array:
    """[B, 2^n, n] log-probability of token i when the set S is hidden; zero where i is not in S."""
    n = len(answers.completions[0])
    sequences, views = views_of_all_sets(answers, model.spec.mask_id)
    logp = score_views(model, sequences, views, views_per_forward=512, transform=transform).logp[:, -n:]
    return logp.double().view(len(sequences), 2**n, n).numpy()


def random_order_logp(tables: Array) -> Array:
    """[B] log-probability that an answer is written one token at a time in random order, all orders together."""
    n = tables.shape[2]
    logp = np.zeros(tables.shape[:2])
    for number in range(1, 2**n):
        hidden = [i for i in range(n) if number >> i & 1]
        ways = np.stack([tables[:, number, i] + logp[:, number ^ (1 << i)] for i in hidden])
        logp[:, number] = np.logaddexp.reduce(ways) - np.log(len(hidden))
    return logp[:, -1]


def moments_of(tables: Array) -> Array:
    """[B, n+1, n+1, n+1] of what the hidden sets of [B, 2^n] are worth."""
    return np.stack([laws.pair_moments(np.outer(row, row)) for row in tables])


def resampled(above: Array, below: Array) -> dict[str, float]:
    """A ratio of means over problems, with its 95% bootstrap interval, and the median of the problems' own ratios."""
    index = np.random.default_rng(0).integers(len(above), size=(2000, len(above)))
    ratios = above[index].mean(1) / below[index].mean(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {
        "ratio": float(above.mean() / below.mean()),
        "low": float(low),
        "high": float(high),
        "median": float(np.median(above / below)),
    }


def compare(moments: Array, size_means: Array | None = None) -> dict[str, Any]:
    """Every corruptor's variance, mean over problems, and its ratio to independent fixed counts."""
    n = moments.shape[1] - 1
    variances = {name: make(n, FORWARDS).variance(moments) for name, make in LAWS.items()}
    found: dict[str, Any] = {
        name: {"variance": float(each.mean()), **resampled(each, variances[PLAIN])} for name, each in variances.items()
    }
    for name, make in LAWS.items():
        if size_means is not None and name.startswith("Bernoulli"):
            bias = make(n, FORWARDS).expectation(size_means) - LAWS[PLAIN](n, FORWARDS).expectation(size_means)
            found[name]["bias"] = float(bias.mean())
    return found


def case(name: str, model: dllm_rl.DiffusionModel, answers: Answers) -> dict[str, Any]:
    """One column of the table: all corruptors on one set of answers."""
    table = token_tables(model, answers).sum(-1)
    means, sizes = laws.size_means(table), laws.hidden_sizes(len(answers.completions[0]))
    n = int(sizes.max())
    within = np.stack([(n / size) ** 2 * table[:, sizes == size].var(1) for size in range(1, n + 1)]).mean()
    between = (n * means[:, 1:] / np.arange(1, n + 1)).var(1).mean()
    moments = moments_of(table)
    return {
        "case": name,
        "tokens": n,
        "problems": len(table),
        "elbo": float(LAWS[PLAIN](n, FORWARDS).expectation(means).mean()),
        "share_within_counts": float(within / (within + between)),
        "corruptors": compare(moments, means),
        "by_forwards": {draws: _ratios(moments, draws) for draws in (2, 4, 8, 16)},
    }


def _ratios(moments: Array, draws: int) -> dict[str, float]:
    """Variances over that of independent fixed counts, means over problems, at another number of forwards."""
    n = moments.shape[1] - 1
    means = {name: float(make(n, draws).variance(moments).mean()) for name, make in LAWS.items()}
    return {name: mean / means[PLAIN] for name, mean in means.items()}


def gradient_products(model: dllm_rl.DiffusionModel, prompt: list[int], completion: list[int]) -> Array:
    """[2^n, 2^n] inner products of the gradients of the hidden sets' log-probabilities, over all parameters."""
    sequences, views = views_of_all_sets(Answers([prompt], [completion]), model.spec.mask_id)
    parameters = [each for each in model.network.parameters() if each.requires_grad]
    rows = [torch.zeros(sum(each.numel() for each in parameters))]
    for number in range(1, len(views)):
        view = views.select(torch.tensor([number]))
        total = score_views(model, sequences, view, views_per_forward=1).logp.sum()
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(total, parameters)]))
    stacked = torch.stack(rows).double()
    return (stacked @ stacked.T).numpy()


def gradient_case(name: str, model: dllm_rl.DiffusionModel, answers: Answers) -> dict[str, Any]:
    """As `case`, of the gradient: traces of covariances, and the squared length of the exact gradient."""
    each = [gradient_products(model, *pair) for pair in zip(answers.prompts, answers.completions, strict=True)]
    n = len(answers.completions[0])
    sizes = laws.hidden_sizes(n)
    exact = np.zeros(2**n)
    exact[1:] = (LAWS[PLAIN](n, FORWARDS).mean / np.array([np.sum(sizes == size) for size in range(n + 1)]))[sizes[1:]]
    return {
        "case": name,
        "problems": len(each),
        "squared_length": float(np.mean([exact @ products @ exact for products in each])),
        "corruptors": compare(np.stack([laws.pair_moments(products) for products in each])),
    }


def margin_case(
    update: int, policy: dllm_rl.DiffusionModel, reference: dllm_rl.DiffusionModel, right: Answers
) -> dict[str, Any]:
    """One checkpoint: KL from the reference, and the variance of ELBO differences with draws shared or independent.

    The law compared is that of answers written one token at a time in random order at temperature 1. The KL is the mean
    of log P(policy) - log P(reference), both exact, over answers drawn from the policy.
    """
    sampled = sampled_answers(policy, right)
    drawn_from = [Transform(forbidden_ids=model.spec.forbidden_ids) for model in (policy, reference)]
    gains = [
        random_order_logp(token_tables(model, sampled, transform))
        for model, transform in zip((policy, reference), drawn_from, strict=True)
    ]
    kl = resampled(gains[0] - gains[1], np.ones(len(right.prompts)))
    found: dict[str, Any] = {"update": update, "kl": {key: kl[key] for key in ("ratio", "low", "high")}}
    for name, answers in (("sampled", sampled), ("right", right)):
        tables = [token_tables(model, answers).sum(-1) for model in (policy, reference)]
        alone, shared = [moments_of(table) for table in tables], moments_of(tables[0] - tables[1])
        n = shared.shape[1] - 1
        found[name] = {}
        for corruptor, make in LAWS.items():
            law = make(n, FORWARDS)
            apart, together = law.variance(alone[0]) + law.variance(alone[1]), law.variance(shared)
            means = {"independent": float(apart.mean()), "shared": float(together.mean())}
            found[name][corruptor] = {**means, **resampled(together, apart)}
    return found


def quickstart(folder: Path, quick: bool) -> Path:
    """Train the quickstart, keeping a checkpoint every five updates."""
    short = ["train.max_steps=2", "train.save_steps=1", "train.per_device_train_batch_size=4", "eval.limit=4"]
    options = short if quick else ["train.save_steps=5", "eval.every=50"]
    command = [sys.executable, "recipes/quickstart.yaml", f"output={folder}", *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder


def measure(run: Path, size: Size) -> dict[str, Any]:
    """Everything that is written down."""
    start, trained = dllm_rl.load_model(ROOT / "recipes/weights/arithmetic"), dllm_rl.load_model(run / "final")
    right = right_answers(start, arithmetic, "answer", size.problems)
    cases = []
    for name, model in (("starting weights", start), ("trained", trained)):
        cases.append((f"quickstart, {name}, right answers", model, right))
        cases.append((f"quickstart, {name}, sampled answers", model, sampled_answers(model, right)))
    sums, grids = (dllm_rl.load_model(ROOT / "recipes/weights" / name) for name in ("column_sum", "small_sudoku"))
    traces = right_answers(sums, column_sum, "trace", size.long_problems)
    solutions = right_answers(grids, small_sudoku, "solution", size.long_problems)
    lengths = [case(f"column sums, last {n} tokens", sums, traces.last(n)) for n in size.lengths]
    longest = size.lengths[-1]
    sudoku = case(f"4x4 Sudoku, last {longest} tokens", grids, solutions.last(longest))
    few = right.first_problems(size.gradients)
    return {
        "forwards": FORWARDS,
        "cases": [*(case(*each) for each in cases), lengths[-1], sudoku],
        "lengths": lengths,
        "gradients": [
            gradient_case("starting weights, right answers", start, few),
            gradient_case("trained, sampled answers", trained, sampled_answers(trained, few)),
        ],
        "margins": [
            margin_case(update, dllm_rl.load_model(run / f"checkpoint-{update}"), start, right)
            for update in size.updates
        ],
    }


def table(facts: dict[str, Any]) -> str:
    """Variances, gradients and margins as Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def interval(found: dict[str, float]) -> str:
        return f"{found['ratio']:.3g} ({found['low']:.3g}-{found['high']:.3g})"

    lines = []
    for cases, unit in ((facts["cases"], "nats²"), (facts["gradients"], "trace")):
        lines += [
            line(["corruptor", *[f"{c['case']}: {unit}; ratio" for c in cases]]),
            line(["---"] * (len(cases) + 1)),
        ]
        for name in LAWS:
            found = [each["corruptors"][name] for each in cases]
            lines.append(line([name, *[f"{each['variance']:.3g}; {interval(each)}" for each in found]]))
        lines.append("")
    columns = [(answers, name) for answers in ("sampled", "right") for name in ("fixed count, stratified", "balanced")]
    lines += [line(["update", "KL, nats", *[f"{name}, {answers} answers" for answers, name in columns]])]
    lines += [line(["---"] * (len(columns) + 2))]
    for each in facts["margins"]:
        ratios = [interval(each[answers][name]) for answers, name in columns]
        lines.append(line([str(each["update"]), interval(each["kl"]), *ratios]))
    return "\n".join(lines)


def main() -> None:
    """Train if need be, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a quickstart run with checkpoints at updates 5, 10, 20, 50 and 100")
    parser.add_argument("--quick", action="store_true", help="a handful of problems, two updates: to see that it runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or quickstart(Path(folder) / "run", arguments.quick)
        measured = measure(run, QUICK if arguments.quick else Size())
    facts = {
        "command": "python benchmarks/estimator.py" + (" --quick" if arguments.quick else ""),
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}, shared; nothing here depends on speed",
        **measured,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "estimator.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    draw(facts, arguments.out / "estimator.png")
    print(table(facts))


if __name__ == "__main__":
    main()
