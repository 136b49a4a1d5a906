"""Entropies of states and of paths, written from the paper without the library; and what drivers are asked to run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from dllm_rl.samplers.generate import row_keys
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request
from tests.diffusion.tabular import Tabular
from tests.samplers.oracle import Steps, Table

RAGGED = [[1, 0], [2], [], [0, 0], [1]]
IDS = [7, 3, 5, 9, 1]
ORDER = [3, 0, 4, 1, 2]


def sampler_of(model: Tabular, name: str = "rl", gen_length: int = 3, temperature: float = 1.0, **request) -> Sampler:
    options = {"threshold": 0.5} if name == "threshold" else {}
    return make_sampler(model.spec, name, options, Request(gen_length=gen_length, temperature=temperature, **request))


def run_driver(
    driver, model: Tabular, prompts: Sequence[Sequence[int]], sampler: Sampler, ids=None, seed=0, fixed=None
):
    return driver(model, prompts, sampler, row_keys(seed, ids, len(prompts)), fixed=fixed)


def probabilities(model: Tabular, prompt: Sequence[int], completion: Sequence[int]) -> list[list[float]]:
    """For every position of the completion, the distribution over words."""
    words = model.spec.mask_id
    logits = model.logits(torch.tensor([[*prompt, *completion]]))[0, len(prompt) :, :words].tolist()
    weights = [[math.exp(value) for value in row] for row in logits]
    return [[weight / sum(row) for weight in row] for row in weights]


def entropy(distribution: Sequence[float]) -> float:
    return -sum(p * math.log(p) for p in distribution)


def state_entropy(model: Tabular, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """Mean entropy of the hidden positions; 0 where there are none."""
    seen = probabilities(model, prompt, completion)
    hidden = [entropy(row) for row, token in zip(seen, completion, strict=True) if token == model.spec.mask_id]
    return sum(hidden) / len(hidden) if hidden else 0.0


def states(steps: Steps, length: int, mask: int) -> list[tuple[int, ...]]:
    """The completion before each step, and after the last."""
    found = [(mask,) * length]
    for step in steps:
        written = dict(step)
        found.append(tuple(written.get(i, token) for i, token in enumerate(found[-1])))
    return found


def denoising_entropy(model: Tabular, prompt: Sequence[int], steps: Steps, length: int) -> float:
    """The trapezoid over times 0, 1/S, ..., 1."""
    heights = [state_entropy(model, prompt, state) for state in states(steps, length, model.spec.mask_id)]
    return sum((a + b) / 2 for a, b in pairwise(heights)) / len(steps)


def rows_shown(model: Table) -> int:
    return sum(len(canvas) for canvas in model.seen)


def assert_same_events(one, other) -> None:
    for name in ("row", "step", "position", "op", "token"):
        assert torch.equal(getattr(one.events, name), getattr(other.events, name)), name
    for name in ("logq", "logp", "conf"):
        torch.testing.assert_close(
            getattr(one.events, name), getattr(other.events, name), rtol=0, atol=0, equal_nan=True
        )
    assert one.nfe == other.nfe
    assert torch.equal(one.selection_logp, other.selection_logp)


def assert_rows_stand_alone(driver, sampler: Sampler, model: Table) -> None:
    """What a prompt becomes depends on its id alone: not on the batch, and not on the order in it."""
    together = run_driver(driver, model, RAGGED, sampler, IDS)
    for row in (0, 2):
        alone = run_driver(driver, model, [RAGGED[row]], sampler, [IDS[row]])
        assert alone.trajectory.completions == [together.trajectory.completions[row]]
        assert alone.trajectory.reveal_step.tolist() == [together.trajectory.reveal_step[row].tolist()]
        assert alone.forwards == [together.forwards[row]]
    shuffled = run_driver(driver, model, [RAGGED[i] for i in ORDER], sampler, [IDS[i] for i in ORDER])
    assert shuffled.trajectory.completions == together.trajectory.select(ORDER).completions
    assert shuffled.forwards == [together.forwards[i] for i in ORDER]
    torch.testing.assert_close(
        shuffled.trajectory.token_behaviour_logp, together.trajectory.select(ORDER).token_behaviour_logp, equal_nan=True
    )


def assert_fixed_tokens_stay(driver, sampler: Sampler, model: Table) -> None:
    """Of four positions the second is given."""
    out = run_driver(driver, model, [[1]] * 8, sampler, fixed=[[None, token % 3, None, None] for token in range(8)])
    assert [row[1] for row in out.trajectory.completions] == [token % 3 for token in range(8)]
    assert out.trajectory.given.tolist() == [[False, True, False, False]] * 8


def assert_log_replays(out, model: Tabular) -> None:
    """Scoring the canvases of the log gives the log-probabilities recorded in it."""
    sequences, reveal = out.sequences(), out.reveal_step
    rescored = torch.zeros_like(out.token_behaviour_logp)
    left = sequences.tokens.shape[1] - reveal.shape[1]
    for step in range(1, out.num_steps + 1):
        where = torch.cat([torch.zeros(len(out), left, dtype=torch.bool), reveal == step], dim=1)
        rescored += model.score(out.canvas(step - 1), sequences.tokens, where, sequences.attend, out.transform).logp
    torch.testing.assert_close(out.token_behaviour_logp, rescored, rtol=0, atol=1e-12)
