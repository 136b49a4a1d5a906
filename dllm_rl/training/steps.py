"""Rewards of the completions that a rollout's steps predicted, as if each had stopped there and written all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from dllm_rl.algorithms.base import Algorithm, StepCredit
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.objectives.reduce import Mean, mean_of
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.training.data import PromptRow, columns_of

Judge = Callable[[Sequence[PromptRow], Sequence[Sequence[Sequence[int]]], int], list[list[float]]]
"""Rewards of several completions, as ids, of each row, before an update."""


def make_judge(panel: RewardPanel, decode: Callable[[Sequence[int]], str], eos_ids: Sequence[int]) -> Judge:
    """A judge that reads a completion up to its first end of text, and asks once about equal ones of a row.

    To reward functions that read it, a completion took as many forwards as until it was first predicted.
    """

    def judge(
        rows: Sequence[PromptRow], completions: Sequence[Sequence[Sequence[int]]], update: int
    ) -> list[list[float]]:
        told = [[tuple(_until_end(ids, eos_ids)) for ids in several] for several in completions]
        place: dict[tuple[int, tuple[int, ...]], int] = {}
        forwards = []
        for row, several in enumerate(told):
            for step, ids in enumerate(several, start=1):
                if (row, ids) not in place:
                    place[row, ids] = len(place)
                    forwards.append(step)
        asked = [rows[row] for row, _ in place]
        total = panel(
            [row.prompt for row in asked],
            [row.as_completion(decode(ids)) for row, (_, ids) in zip(asked, place, strict=True)],
            [list(ids) for _, ids in place],
            columns_of(asked),
            rollout={"forwards": forwards, "gen_length": [len(completions[row][0]) for row, _ in place]},
            update=update,
        ).total
        return [[total[place[row, ids]] for ids in several] for row, several in enumerate(told)]

    return judge


def predicted_completions(trajectory: Trajectory) -> list[list[list[int]]]:
    """The one-step completion of every step that each rollout took, in order."""
    assert trajectory.predictions is not None, "the rollout recorded its predictions"
    tokens = trajectory.predictions.tokens.tolist()
    return [steps[:taken] for steps, taken in zip(tokens, trajectory.nfe, strict=True)]


def credit_steps(
    algorithm: Algorithm, judge: Judge, rows: Sequence[PromptRow], trajectory: Trajectory, group: int, update: int
) -> tuple[StepCredit, dict[str, Mean]]:
    """What the algorithm makes of the rewards of all steps, and what there is to report of them.

    Args:
        rows: one per rollout.
        group: completions per prompt, side by side.
    """
    rewards = judge(rows, predicted_completions(trajectory), update)
    reward = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(several, dtype=torch.float64) for several in rewards], batch_first=True
    )
    num_steps = torch.tensor(trajectory.nfe)
    credit = algorithm.step_credit(reward.view(-1, group, reward.shape[1]), num_steps.view(-1, group))
    device = trajectory.device
    return StepCredit(credit.advantage.to(device), credit.kept.to(device)), _metrics(reward, num_steps)


def _metrics(reward: Float64[Tensor, "B S"], num_steps: Int64[Tensor, " B"]) -> dict[str, Mean]:
    """How good the best prediction of a rollout was, and how often it was better than the last."""
    taken = torch.arange(reward.shape[1]) < num_steps[:, None]
    best = reward.masked_fill(~taken, float("-inf")).amax(1)
    last = reward.gather(1, num_steps[:, None] - 1)[:, 0]
    return {"reward/best_step": mean_of(best), "reward/over_denoised": mean_of((best > last).double())}


def _until_end(ids: Sequence[int], eos_ids: Sequence[int]) -> Sequence[int]:
    """Up to and including the first end of text, as TRL's reward convention has it."""
    end = next((place for place, token in enumerate(ids) if token in eos_ids), len(ids) - 1)
    return ids[: end + 1]
