"""The whole second rollout on a toy: the law of augmented groups, and the expected gradient, both by enumeration."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from dllm_rl.algorithms import IGPO, Scores
from dllm_rl.algorithms.base import Material
from dllm_rl.algorithms.hints import HintSettings
from dllm_rl.rng import fold, sample_keys
from dllm_rl.rollouts.hints import Trace
from dllm_rl.samplers.generate import generate, rollout
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.training.backward import score_group, score_with_entropy
from dllm_rl.training.data import PromptRow
from dllm_rl.training.inpaint import make_inpainter
from dllm_rl.training.judged import Judged
from tests.samplers.oracle import Table

PROMPT, TARGET, LENGTH, WORDS, G = 1, (2, 0, 1), 3, 3, 2
MASK = WORDS
HINTS = HintSettings(min_chunk=1, max_chunk=1, min_share=0.7, max_share=0.7)  # two of three tokens
Row = tuple[tuple[int, ...], tuple[bool, ...]]
"""A completion, and where it was given."""


class Toy:
    """Completions of three tokens after one; correct is a single one of the 27."""

    def __init__(self) -> None:
        self.model = Table(seed=3, longest=1 + LENGTH)
        self.model.tables[1 + LENGTH] *= 0.4  # so that every completion turns up
        self.table = self.model.tables[1 + LENGTH].requires_grad_()

    def logits(self, canvas: tuple[int, ...]) -> Tensor:
        index = sum(token * (WORDS + 1) ** place for place, token in enumerate((PROMPT, *canvas)))
        return self.table[index, 1:]

    def law(self, canvas: tuple[int, ...] = (MASK,) * LENGTH) -> dict[tuple[int, ...], Tensor]:
        """Of the sampler that writes where the model is surest, without looking at the draw; differentiable."""
        if MASK not in canvas:
            return {canvas: torch.ones((), dtype=torch.float64)}
        p = self.logits(canvas)[:, :WORDS].softmax(-1)
        where = max((i for i in range(LENGTH) if canvas[i] == MASK), key=lambda i: float(p[i].detach().max()))
        return {
            text: p[where, token] * rest
            for token in range(WORDS)
            for text, rest in self.law((*canvas[:where], token, *canvas[where + 1 :])).items()
        }

    def score(self, row: Row, share: float) -> Tensor:
        """s(y): mean log-probability of the kept tokens on the fully hidden view."""
        logp = self.logits((MASK,) * LENGTH).log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1).detach()
        hints = sorted((i for i in range(LENGTH) if row[1][i]), key=lambda i: -float(entropy[i]))
        kept = [i for i in range(LENGTH) if not row[1][i]] + hints[: max(1, int(share * len(hints)))]
        return sum(logp[i, row[0][i]] for i in kept) / len(kept)  # type: ignore[return-value]

    @torch.no_grad()
    def law_of_groups(self) -> dict[tuple[Row, ...], float]:
        """Of augmented groups of two, in order: section 3 of the paper."""
        plain = {(text, (False,) * LENGTH): float(p) for text, p in self.law().items()}
        hinted: dict[Row, float] = defaultdict(float)
        templates = list(combinations(range(LENGTH), 2))
        for shown in templates:
            canvas = tuple(TARGET[i] if i in shown else MASK for i in range(LENGTH))
            for text, p in self.law(canvas).items():
                hinted[text, tuple(i in shown for i in range(LENGTH))] += float(p) / len(templates)
        groups: dict[tuple[Row, ...], float] = defaultdict(float)
        for (a, p), (b, q) in product(plain.items(), repeat=2):
            if TARGET in (a[0], b[0]):
                groups[a, b] += p * q
                continue
            for (c, r), (d, s) in product(hinted.items(), repeat=2):
                right = [row for row in (c, d) if row[0] == TARGET]
                if right:
                    groups[right[0], b] += p * q * r * s / 2
                    groups[a, right[0]] += p * q * r * s / 2
                else:
                    groups[a, b] += p * q * r * s
        assert sum(groups.values()) == pytest.approx(1.0, abs=1e-12)
        return groups


def advantages(group: tuple[Row, ...]) -> list[float]:
    reward = [float(row[0] == TARGET) for row in group]
    return [r - sum(reward) / G for r in reward]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_expected_gradient_is_that_of_the_stated_objective(share: float) -> None:
    toy = Toy()
    groups = toy.law_of_groups()
    objective = sum(
        p * sum(a * toy.score(row, share) for a, row in zip(advantages(group), group, strict=True)) / G
        for group, p in groups.items()
        if any(advantages(group))
    )
    (expected,) = torch.autograd.grad(objective, toy.table)  # type: ignore[arg-type]
    found = estimate(toy, IGPO(entropy_share=share, kl_coefficient=0), groups)
    assert float(expected.norm()) > 0.02
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def estimate(toy: Toy, algorithm: IGPO, groups: dict[tuple[Row, ...], float]) -> Tensor:
    """Minus the expected gradient of the loss in the first update. On policy it is linear in the advantages, so that
    all groups, weighed by their probability, are one batch."""
    rows, weighed = [], []
    for group, p in groups.items():
        rows += group
        weighed += [p * a for a in advantages(group)]
    templates = [[t if g else None for t, g in zip(text, given, strict=True)] for text, given in rows]
    # Every completion as a rollout: what is not given is given too, then said to be drawn.
    full = generate(toy.model, [[PROMPT]] * len(rows), gen_length=LENGTH, fixed=[list(text) for text, _ in rows])
    drawn = torch.tensor([[t is None for t in template] for template in templates])
    events = full.events
    written = drawn[events.row, events.position]
    op = torch.where(written, torch.zeros_like(events.op), events.op)
    trajectory = _with_events(full, op)
    material = Material(trajectory.sequences(), trajectory.keys, torch.tensor(weighed, dtype=torch.float64), trajectory)
    batch = algorithm.prepare(material, trajectory.keys, MASK)
    if algorithm.needs_entropy(material):
        batch = algorithm.filtered(material, batch, score_with_entropy(toy.model, batch, 5000).entropy)
    scores: Scores = score_group(toy.model, batch, torch.arange(len(rows)))
    return -torch.autograd.grad(algorithm.loss(batch, scores).total / G, toy.table)[0]


def _with_events(trajectory, op):  # type: ignore[no-untyped-def]
    return replace(trajectory, events=replace(trajectory.events, op=op))


def test_augmented_groups_have_that_law() -> None:
    """The engine, the hints, the replacement and the trigger as training runs them, over many groups."""
    toy, many = Toy(), 700
    law = toy.law_of_groups()
    sampler = make_sampler(toy.model.spec, "rl", {}, Request(LENGTH, None, None, 1.0, 0.0))

    def roll_out(rows, keys, fixed=None) -> Judged:  # type: ignore[no-untyped-def]
        trajectory = rollout(toy.model, [row.ids for row in rows], sampler, keys, fixed=fixed)
        values = [float(tuple(text) == TARGET) for text in trajectory.completions]
        reward = torch.tensor(values, dtype=torch.float64)
        return Judged(rows, trajectory, [""] * len(rows), reward, reward, {"right": list(values)})

    row = PromptRow([PROMPT], "", {}, Trace(list(TARGET), [True] * LENGTH))
    keys = sample_keys(0, torch.arange(many * G))
    inpainter = make_inpainter(HINTS, ["right"], ["right"], num_generations=G, gen_length=LENGTH)
    originals = roll_out([row] * (many * G), fold(keys, "rollout"))
    augmented, _ = inpainter.augment(originals, keys, partial(roll_out))
    texts, given = augmented.trajectory.completions, augmented.trajectory.given.tolist()
    rows = [(tuple(text), tuple(where)) for text, where in zip(texts, given, strict=True)]
    found = Counter(tuple(rows[first : first + G]) for first in range(0, len(rows), G))
    assert found.keys() <= law.keys()
    likely = {group for group, p in law.items() if p * many >= 5}
    rest = 1 - sum(law[group] for group in likely)
    counted = many - sum(found[group] for group in likely)
    chi_square = sum((found[g] - many * law[g]) ** 2 / (many * law[g]) for g in likely)
    chi_square += (counted - many * rest) ** 2 / (many * rest)
    assert abs(chi_square - len(likely)) < 4 * (2 * len(likely)) ** 0.5, (chi_square, len(likely))
    rescued = [group for group in likely if any(any(row[1]) for row in group)]
    assert len(rescued) >= 6, "groups with hints are among those compared"


def test_how_far_the_estimate_is_from_the_policy_gradient() -> None:
    """Printed for docs/igpo.md: the direction, with hints and without, and the length."""
    toy = Toy()
    (true,) = torch.autograd.grad(toy.law()[TARGET], toy.table)
    groups = toy.law_of_groups()
    plain: dict[tuple[Row, ...], float] = {}
    for (a, p), (b, q) in product(toy.law().items(), repeat=2):
        plain[(a, (False,) * LENGTH), (b, (False,) * LENGTH)] = float(p * q)
    hidden = _index((MASK,) * LENGTH)
    for name, law in (("with hints", groups), ("without", plain)):
        found = estimate(toy, IGPO(entropy_share=0.5, kl_coefficient=0), law)
        cosine = torch.nn.functional.cosine_similarity(found[hidden].flatten(), true[hidden].flatten(), dim=0)
        print(f"{name}: cosine {float(cosine):.3f} on the hidden canvas, length {float(found.norm()):.4f}")
        assert (found.flatten() @ true.flatten()) > 0
    print(f"policy gradient: length {float(true.norm()):.4f}, on the hidden canvas {float(true[hidden].norm()):.4f}")
    solved = float(toy.law()[TARGET])
    failed = (1 - solved) ** G
    rescued = sum(p for group, p in groups.items() if any(any(row[1]) for row in group))
    print(f"correct {solved:.3f}; groups that fail {failed:.3f}, of which {rescued / failed:.3f} are rescued")


def _index(canvas: tuple[int, ...]) -> int:
    return sum(token * (WORDS + 1) ** place for place, token in enumerate((PROMPT, *canvas)))
