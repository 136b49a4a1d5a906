"""Rewards of one-step completions: which texts are judged, how often, and what the trainer makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dllm_rl.algorithms import MDPO
from dllm_rl.errors import RewardError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.rng import fold
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.rollouts.text import decode_until_eos
from dllm_rl.training.data import PromptRow
from dllm_rl.training.order import Layout, visit_at, visit_keys
from dllm_rl.training.source import RolloutSource
from dllm_rl.training.steps import credit_steps, make_judge, predicted_completions

ROWS = [PromptRow([40 + i, 41 + i], f"p{i}", {"answer": str(i)}) for i in range(6)]
WAY: dict[str, Any] = {"sampler": "threshold", "gen_length": 4, "options": {"threshold": 0.01}}


class Sum:
    """A reward of the ids alone, that keeps what it was asked."""

    __name__ = "total"

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, prompts, completions, completion_ids, **columns):  # type: ignore[no-untyped-def]
        self.asked.append({"prompts": prompts, "texts": completions, "ids": completion_ids, **columns})
        return [float(sum(ids) % 7) for ids in completion_ids]


def test_equal_completions_of_a_row_are_judged_once_and_read_to_the_end_of_text() -> None:
    reward = Sum()
    judge = make_judge(RewardPanel([reward]), lambda ids: "".join(map(str, ids)), eos_ids=(0, 9))
    several = [[[1, 2, 0, 5], [1, 2, 0, 6], [1, 2, 3, 4]], [[1, 2, 0, 7], [9, 1, 1, 1]]]
    rewards = judge(ROWS[2:4], several, 3)
    assert rewards == [[3.0, 3.0, 3.0], [3.0, 2.0]]
    (asked,) = reward.asked
    assert asked["ids"] == [[1, 2, 0], [1, 2, 3, 4], [1, 2, 0], [9]]
    assert asked["texts"] == ["120", "1234", "120", "9"]
    assert asked["prompts"] == ["p2", "p2", "p3", "p3"] and asked["answer"] == ["2", "2", "3", "3"]


def test_a_prediction_took_as_many_forwards_as_until_it_was_first_made() -> None:
    def reward(prompts, completions, forwards, gen_length, **columns):  # type: ignore[no-untyped-def]
        return [float(10 * spent + length) for spent, length in zip(forwards, gen_length, strict=True)]

    judge = make_judge(RewardPanel([reward]), lambda ids: "yes", eos_ids=(0,))
    assert judge(ROWS[:1], [[[1, 2], [3, 0], [1, 2], [3, 0]]], 0) == [[12.0, 22.0, 12.0, 22.0]]


def test_an_error_names_the_update() -> None:
    judge = make_judge(RewardPanel([lambda **columns: 1.0]), str, eos_ids=())
    with pytest.raises(RewardError, match="at update 3"):
        judge(ROWS[:1], [[[1, 2]]], 3)


def test_chat_rows_are_judged_as_messages() -> None:
    reward = Sum()
    row = PromptRow([1], [{"role": "user", "content": "hm"}], {})
    make_judge(RewardPanel([reward]), lambda ids: "yes", eos_ids=())([row], [[[5, 6]]], 0)
    assert reward.asked[0]["texts"] == [[{"role": "assistant", "content": "yes"}]]


def _source(model: DiffusionModel, reward: Sum) -> RolloutSource:
    engine = LocalEngine(model, RolloutSettings(**WAY, record_predictions=True), batch_size=3)
    decode, device = decode_until_eos(model), torch.device("cpu")
    return RolloutSource(ROWS, 5, engine, RewardPanel([reward]), MDPO(kept_steps=2), 3, decode, device)


def test_the_material_has_the_advantage_of_every_step_of_every_rollout(tiny: DiffusionModel) -> None:
    reward = Sum()
    layout = Layout(rank=0, world=1, num_micro_batches=2, per_device=1)
    harvest = _source(tiny, reward).harvest(1, layout, update=7)
    visits = [visit_at(5, 1, slot, 2, len(ROWS)) for slot in range(2)]
    rows = [ROWS[v.row] for v in visits for _ in range(3)]
    engine = LocalEngine(tiny, RolloutSettings(**WAY, record_predictions=True))
    out = engine.generate([row.ids for row in rows], fold(visit_keys(5, visits, 3), "rollout"))
    assert len(set(out.nfe)) > 1, "rollouts should differ in how many steps they took"
    best, worse = [], 0
    for prompt in range(2):
        group = range(3 * prompt, 3 * prompt + 3)
        table = torch.zeros(1, 3, out.num_steps, dtype=torch.float64)
        for i, row in enumerate(group):
            told = out.predictions.tokens[row, : out.nfe[row]].tolist()
            ends = [next((k + 1 for k, t in enumerate(ids) if t in tiny.spec.eos_ids), 4) for ids in told]
            values = [float(sum(ids[:end]) % 7) for ids, end in zip(told, ends, strict=True)]
            table[0, i, : out.nfe[row]] = torch.tensor(values)
            best.append(max(values))
            worse += max(values) > values[-1]
        expected = MDPO(kept_steps=2).step_credit(table, torch.tensor([out.nfe])[:, group.start : group.stop])
        found = harvest.material[prompt].credit
        assert found is not None and expected.kept.any()
        torch.testing.assert_close(found.advantage, expected.advantage)
        assert torch.equal(found.kept, expected.kept)
    assert float(harvest.metrics["reward/best_step"].value) == pytest.approx(sum(best) / 6)
    assert float(harvest.metrics["reward/over_denoised"].value) == pytest.approx(worse / 6)


def test_two_processes_share_what_one_does(tiny: DiffusionModel) -> None:
    """What a group keeps does not depend on the groups beside it, nor on the longest rollout among them."""
    one = _source(tiny, Sum()).harvest(0, Layout(0, 1, 2, 2), 0)
    two = [_source(tiny, Sum()).harvest(0, Layout(rank, 2, 2, 1), 0) for rank in range(2)]

    def together(parts):  # type: ignore[no-untyped-def]
        return {
            int(key): [(step, float(a)) for step, (a, k) in enumerate(zip(advantage, kept, strict=True)) if k]
            for m in parts
            for key, advantage, kept in zip(m.keys, m.credit.advantage, m.credit.kept, strict=True)
        }

    assert together(one.material) == together([m for harvest in two for m in harvest.material])


def test_predictions_of_a_rollout_are_those_of_the_steps_it_took(tiny: DiffusionModel) -> None:
    engine = LocalEngine(tiny, RolloutSettings(**WAY, record_predictions=True))
    out = engine.generate([[40, 41]] * 4, torch.arange(4))
    several = predicted_completions(out)
    assert [len(steps) for steps in several] == out.nfe
    assert [steps[-1] for steps in several] == out.completions, "the last step writes all that is hidden"


def test_the_judge_is_told_which_update_it_judges_for(tiny: DiffusionModel) -> None:
    engine = LocalEngine(tiny, RolloutSettings(**WAY, record_predictions=True))
    out = engine.generate([[40, 41]] * 4, torch.arange(4))
    seen = []

    def judge(rows, completions, update):  # type: ignore[no-untyped-def]
        seen.append((len(rows), update))
        return [[0.0 for _ in several] for several in completions]

    credit, metrics = credit_steps(MDPO(), judge, ROWS[:4], replace(out, update=3), 2, 11)
    assert seen == [(4, 11)] and not credit.advantage.any()
    assert float(metrics["reward/over_denoised"].value) == 0.0
