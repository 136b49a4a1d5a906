"""A whole step of reinforcement learning, phase by phase: rollout, reward, views and scoring, backward, optimiser.

    python -m benchmarks.step                  # about four minutes on two CPU cores; Linux, for the peak memory

diffu-GRPO as d1 runs it, in small: one prompt, four completions of 32 tokens in 16 forwards, two updates from each
rollout, a reference, LLaDA's vocabulary, a random network of small width. Both sides do all of it; the plain one with
`benchmarks.reference` and `benchmarks.plain_trainer`. What is scored before an update: the reference on the views of
both updates; by the plain side the rollout's weights too on both, as d1 does, by ours on the second only, since before
the first update they are the policy's own. Both judge with rewards/gsm8k.py.

Memory is the peak of resident memory during a phase above what stood before it. Everything runs in one process which
gives freed tensors back at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measure

PHASES = ("rollout", "reward", "scoring", "backward", "optimiser")
UPDATES = 2


@dataclass(frozen=True)
class Shape:
    """What one step makes."""

    completions: int = 4
    prompt: int = 32
    length: int = 32
    forwards: int = 16
    vocabulary: int = 126_464


SMALL = Shape(prompt=6, length=8, forwards=4, vocabulary=60)


def judged(completions: Sequence[Sequence[int]]) -> Any:
    """Advantages [B] of texts that spell their ids; a reward that tells them apart."""
    import torch

    from dllm_rl.rollouts.rewards import load_reward

    reward = load_reward("rewards/gsm8k.py:correctness").function
    texts = [f"<answer>{sum(ids) % 3}</answer> " + " ".join(map(str, ids)) for ids in completions]
    values = reward(
        prompts=["?"] * len(texts), completions=texts, completion_ids=completions, answer=["1"] * len(texts)
    )
    told = torch.tensor(values, dtype=torch.float32) + 0.1 * torch.arange(len(texts))
    return told - told.mean()


class Ours:
    """The trainer's own pieces, in its order."""

    def __init__(self, shape: Shape) -> None:
        import torch

        from benchmarks.cases import Shape as Update
        from benchmarks.cases import make_model
        from dllm_rl.algorithms import DiffuGRPO
        from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings

        self.shape = shape
        self.model = make_model(Update("", 1, 1, shape.prompt, shape.length, vocabulary=shape.vocabulary))
        self.model.make_reference_copy()
        self.optimizer = torch.optim.AdamW(self.model.network.parameters(), lr=1e-6)
        for weight in self.model.network.parameters():
            weight.grad = torch.zeros_like(weight)
        self.optimizer.step()  # of nothing: gradients and the optimiser's state are allocated
        self.algorithm = DiffuGRPO(reduction="local_token", updates_per_rollout=UPDATES)
        settings = RolloutSettings(
            sampler="llada",
            gen_length=shape.length,
            block_length=shape.length,
            steps=shape.forwards,
            temperature=0.9,
        )
        self.engine = LocalEngine(self.model, settings)
        generator = torch.Generator().manual_seed(5)
        prompt = torch.randint(0, shape.vocabulary - 2, (shape.prompt,), generator=generator)
        self.prompts = [prompt.tolist()] * shape.completions

    def rollout(self) -> None:
        import torch

        from dllm_rl.rng import sample_keys

        self.keys = sample_keys(0, torch.arange(self.shape.completions))
        with torch.no_grad():
            self.trajectory = self.engine.generate(self.prompts, self.keys)

    def reward(self) -> None:
        self.advantage = judged(self.trajectory.completions)

    def scoring(self) -> None:
        import torch

        from dllm_rl.algorithms.base import Material
        from dllm_rl.rng import fold
        from dllm_rl.training.backward import score_all

        sequences = self.trajectory.sequences()
        self.batches = []
        with torch.no_grad(), self.model.reference() as reference:
            for iteration in range(UPDATES):
                keys = fold(self.keys, "views", iteration)
                material = Material(sequences, self.keys, self.advantage, self.trajectory, iteration)
                batch = self.algorithm.prepare(material, keys, self.model.spec.mask_id)
                size = self.shape.completions
                known = score_all(self.model, batch, size).logp if iteration else None
                self.batches.append(
                    replace(batch, behaviour_logp=known, reference_logp=score_all(reference, batch, size).logp)
                )

    def backward(self, iteration: int) -> float:
        from dllm_rl.training.backward import backward, view_groups

        batch = self.batches[iteration]
        losses = backward(
            self.algorithm,
            batch,
            self.model,
            self.model,
            groups=view_groups(len(batch.views), self.shape.completions),
            scale=1.0 / self.algorithm.count(batch),
            group_context=lambda last: nullcontext(),
            back_propagate=lambda objective: objective.backward(),
        )
        return float(sum(loss.total for loss in losses)) / self.algorithm.count(batch)

    def optimiser(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)


class Plain(Ours):
    """The same step with logits of everything. Views are drawn by the library: what is compared is what is done."""

    def rollout(self) -> None:
        import torch

        from benchmarks.reference import reference_generate

        self.canvas = reference_generate(
            self.model.network,
            torch.tensor(self.prompts),
            steps=self.shape.forwards,
            gen_length=self.shape.length,
            block_length=self.shape.length,
            temperature=0.9,
            mask_id=self.model.spec.mask_id,
        )

    def reward(self) -> None:
        self.tokens = self.canvas[:, self.shape.prompt :]
        self.advantage = judged(self.tokens.tolist())

    def scoring(self) -> None:
        import torch

        from benchmarks.plain_trainer import one_step_logp
        from dllm_rl.diffusion.corruption import FullyHidden
        from dllm_rl.diffusion.sequences import sequences_from_ids
        from dllm_rl.rng import fold, sample_keys

        sequences = sequences_from_ids(self.prompts, self.tokens.tolist(), 0)
        keys = sample_keys(0, torch.arange(self.shape.completions))
        noised = [
            FullyHidden().views(sequences, 1, fold(keys, "views", iteration), self.model.spec.mask_id).canvas
            for iteration in range(UPDATES)
        ]
        together, tokens = torch.cat(noised), self.tokens.repeat(UPDATES, 1)
        with torch.no_grad(), self.model.reference() as reference:
            old = one_step_logp(self.model.network, together, tokens).chunk(UPDATES)
            base = one_step_logp(reference.network, together, tokens).chunk(UPDATES)
        self.known = list(zip(noised, old, base, strict=True))

    def backward(self, iteration: int) -> float:
        import torch

        from benchmarks.plain_trainer import diffu_grpo_loss

        canvas, old, base = self.known[iteration]
        counted = torch.ones_like(self.tokens, dtype=torch.bool)
        ended = self.tokens == self.model.spec.eos_ids[0]
        counted &= ended.cumsum(1) - ended.long() == 0  # up to the first end of sequence
        loss = diffu_grpo_loss(self.model.network, canvas, self.tokens, counted, self.advantage, old, base)
        loss.backward()
        return float(loss.detach())


def step(side: Ours) -> dict[str, list[measure.Cost]]:
    """One step: what each phase took, each time it ran."""
    found = {phase: [measure.cost(getattr(side, phase))] for phase in ("rollout", "reward", "scoring")}
    found |= {"backward": [], "optimiser": []}
    for iteration in range(UPDATES):
        found["backward"].append(measure.cost(partial(side.backward, iteration)))
        found["optimiser"].append(measure.cost(side.optimiser))
    return found


def measured(shape: Shape, repeats: int) -> dict[str, Any]:
    """For each side and phase the median over steps of its time in a step, and its highest peak; sides in turn."""
    sides = {"plain": Plain(shape), "dllm_rl": Ours(shape)}
    judged([[0], [1]])  # loaded once, by neither side
    steps: dict[str, list[dict[str, list[measure.Cost]]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            steps[name].append(step(side))
            print(name, steps[name][-1], file=sys.stderr, flush=True)
    return {name: {phase: _phase([each[phase] for each in found]) for phase in PHASES} for name, found in steps.items()}


def _phase(steps: list[list[measure.Cost]]) -> dict[str, float]:
    return {
        "seconds": median(sum(cost.seconds for cost in costs) for costs in steps),
        "cpu_seconds": median(sum(cost.cpu_seconds for cost in costs) for costs in steps),
        "peak_mb": max(cost.peak_mb for costs in steps for cost in costs),
    }


def assert_equal_steps() -> None:
    """From the same rollouts both sides make the same updates: losses and gradients of both.

    Raises:
        AssertionError: they do not.
    """
    import torch

    ours, plain = Ours(SMALL), Plain(SMALL)
    ours.rollout()
    plain.canvas = ours.trajectory.sequences().tokens
    for side in (ours, plain):
        side.reward()
        side.scoring()
    for iteration in range(UPDATES):
        loss, wanted = ours.backward(iteration), plain.backward(iteration)
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
        for weight, other in zip(ours.model.network.parameters(), plain.model.network.parameters(), strict=True):
            torch.testing.assert_close(weight.grad, other.grad, rtol=1e-3, atol=1e-6)


def draw(found: dict[str, Any], path: Path) -> None:
    """A bar for each side, its phases one after the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    colours = ("#0072b2", "#cc79a7", "#e69f00", "#d55e00", "#009e73")
    names = {"dllm_rl": "dllm_rl", "plain": "plain transcription"}
    left = dict.fromkeys(names, 0.0)
    for phase, colour in zip(PHASES, colours, strict=True):
        widths = [found[side][phase]["cpu_seconds"] for side in names]
        axes.barh(list(names.values()), widths, left=list(left.values()), color=colour, label=phase, height=0.6)
        left = {side: left[side] + width for side, width in zip(names, widths, strict=True)}
    for name, total in zip(names.values(), left.values(), strict=True):
        axes.text(total, name, f" {total:.1f}", va="center")
    axes.set_xlim(right=1.1 * max(left.values()))
    axes.set_xlabel("CPU seconds a step of RL (rollout, and two updates)")
    shape = Shape()
    axes.set_title(
        f"{shape.completions} completions of {shape.length} tokens, vocabulary {shape.vocabulary:,}, width 64"
    )
    figure.legend(loc="outside lower center", ncols=len(PHASES), frameon=False)
    figure.savefig(path, dpi=110)


def report(found: dict[str, Any]) -> str:
    rows = []
    for phase in (*PHASES, "all"):
        seconds, cpu, peaks = [], [], []
        for side in ("plain", "dllm_rl"):
            chosen = [found[side][each] for each in (PHASES if phase == "all" else (phase,))]
            seconds.append(sum(each["seconds"] for each in chosen))
            cpu.append(sum(each["cpu_seconds"] for each in chosen))
            peaks.append(max(each["peak_mb"] for each in chosen))
        numbers = [f"{seconds[0]:.2f}", f"{seconds[1]:.2f}", f"{cpu[0]:.2f}", f"{cpu[1]:.2f}"]
        rows.append((phase, *numbers, f"{cpu[0] / cpu[1]:.1f}", f"{peaks[0]:,.0f}", f"{peaks[1]:,.0f}"))
    head = ["phase", "plain, s", "dllm_rl, s", "plain, CPU s", "dllm_rl, CPU s", "times less", "plain, peak MB"]
    return measure.table([*head, "dllm_rl, peak MB"], rows)


def main() -> None:
    parser = measure.options(__doc__, "a small step")
    parser.add_argument("--only", choices=["measure"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measured(Shape(), arguments.repeats)))
        return
    assert_equal_steps()
    if arguments.quick:
        print(report(measured(SMALL, arguments.repeats)))
        return
    facts = measure.facts(f"python -m benchmarks.step --repeats {arguments.repeats}")
    measure.refuse_little_memory()
    options = ["--only", "measure", "--repeats", str(arguments.repeats)]
    found = measure.in_own_process("benchmarks.step", options, measure.TWO_THREADS | measure.LIVE_MEMORY)
    print(report(found))
    measure.write("step", facts | {"shape": asdict(Shape()), "sides": found}, arguments.out)
    draw(found, arguments.out / "step.png")


if __name__ == "__main__":
    main()
