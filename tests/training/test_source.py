"""Material of an update: what is rolled out, judged and handed to the algorithm, whatever the layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dllm_rl.algorithms import DiffuGRPO, PlannerImitation
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.rng import fold
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.rollouts.text import decode_until_eos
from dllm_rl.training.data import Example, PromptRow
from dllm_rl.training.order import Layout, visit_at, visit_keys
from dllm_rl.training.source import DemonstrationSource, ExampleSource, RolloutSource

ROWS = [PromptRow([40 + i, 41 + i], f"p{i}", {"answer": str(i)}) for i in range(6)]


def _source(model: DiffusionModel, seen: list[dict[str, Any]], **algorithm: Any) -> RolloutSource:
    def reward(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        seen.append({"prompts": prompts, "completions": completions, "ids": completion_ids, **columns})
        return [float(sum(ids) % 7) for ids in completion_ids]

    return RolloutSource(
        ROWS,
        5,
        LocalEngine(model, RolloutSettings(gen_length=4, steps=4), batch_size=3),
        RewardPanel([reward]),
        DiffuGRPO(**algorithm),
        3,
        decode_until_eos(model),
        torch.device("cpu"),
    )


def test_a_window_is_its_samples_keys_texts_rewards_and_group_advantages(tiny: DiffusionModel) -> None:
    seen: list[dict[str, Any]] = []
    layout = Layout(rank=0, world=1, num_micro_batches=2, per_device=1)
    harvest = _source(tiny, seen).harvest(1, layout, update=7)
    visits = [visit_at(5, 1, slot, 2, len(ROWS)) for slot in range(2)]
    keys = visit_keys(5, visits, 3)
    rows = [ROWS[v.row] for v in visits for _ in range(3)]
    engine = LocalEngine(tiny, RolloutSettings(gen_length=4, steps=4))
    expected = engine.generate([row.ids for row in rows], fold(keys, "rollout"))
    (call,) = seen
    assert call["prompts"] == [row.prompt for row in rows]
    assert call["answer"] == [row.columns["answer"] for row in rows]
    ends = [next((i + 1 for i, t in enumerate(c) if t in tiny.spec.eos_ids), len(c)) for c in expected.completions]
    assert call["ids"] == [c[:end] for c, end in zip(expected.completions, ends, strict=True)]
    reward = torch.tensor([float(sum(ids) % 7) for ids in call["ids"]], dtype=torch.float64).view(2, 3)
    advantage = (reward - reward.mean(1, keepdim=True)).flatten()
    for part, material in zip(torch.arange(6).split(3), harvest.material, strict=True):
        torch.testing.assert_close(material.advantage, advantage[part])
        assert torch.equal(material.keys, keys[part])
        assert torch.equal(material.group_keys, keys[part[0]].expand(3)), "one prompt, one group"
        assert torch.equal(material.sequences.tokens, expected.sequences().tokens[part])
        assert material.trajectory is not None
        assert torch.equal(material.trajectory.keys, fold(keys, "rollout")[part])
        assert torch.equal(material.trajectory.tokens, expected.tokens[part])
    assert harvest.metrics["reward/mean"].value == reward.mean()
    forwards = sum(expected.nfe)
    torch.testing.assert_close(
        harvest.metrics["rollout/tokens_per_forward"].value, torch.tensor(sum(ends) / forwards, dtype=torch.float64)
    )
    torch.testing.assert_close(harvest.metrics["rollout/surprisal"].value, -expected.token_behaviour_logp.sum() / 24)
    assert "reward/unshaped" not in harvest.metrics
    assert [sample.reward for sample in harvest.samples] == reward.flatten().tolist()


def test_rewards_see_how_each_completion_was_made_and_speed_shapes_them(tiny: DiffusionModel) -> None:
    def right(forwards: list[int], gen_length: list[int], **columns: Any) -> list[float]:
        assert (forwards, gen_length) == ([2] * 3, [4] * 3)
        return [1.0, 0.0, 0.5]

    quick = replace(
        _source(tiny, []),
        engine=LocalEngine(tiny, RolloutSettings(gen_length=4, steps=2)),
        panel=RewardPanel([right], speed_exponent=2.0),
    )
    harvest = quick.harvest(0, Layout(0, 1, 1, 1), 0)
    shaped = [1.0 * (3 / 4) ** 2, 0.0, 0.5 * (3 / 4) ** 2]
    assert [sample.reward for sample in harvest.samples] == shaped
    assert harvest.metrics["reward/mean"].value == pytest.approx(sum(shaped) / 3)
    assert harvest.metrics["reward/unshaped"].value == pytest.approx(0.5)
    assert harvest.metrics["reward/right/group_std"].value == pytest.approx(0.5)
    assert harvest.metrics["reward/right/applies"].value == 1.0


def test_a_function_is_normalised_within_its_prompt_s_group(tiny: DiffusionModel) -> None:
    def apart(prompts: list[str], **columns: Any) -> list[float]:
        return [100.0 * int(prompt[1:]) + place % 3 for place, prompt in enumerate(prompts)]

    source = replace(_source(tiny, []), panel=RewardPanel([apart], normalization="per_function"))
    harvest = source.harvest(0, Layout(0, 1, 1, 2), 0)
    assert [sample.reward for sample in harvest.samples] == pytest.approx([-1, 0, 1, -1, 0, 1])


def test_demonstrations_are_the_rollouts_that_a_reward_would_have_judged(tiny: DiffusionModel) -> None:
    layout = Layout(rank=0, world=1, num_micro_batches=2, per_device=1)
    judged = _source(tiny, [])
    shown = DemonstrationSource(
        judged.rows, judged.seed, judged.engine, PlannerImitation(), judged.num_generations, judged.device
    )
    whole, bare = judged.harvest(1, layout, update=7), shown.harvest(1, layout, update=7)
    for one, other in zip(whole.material, bare.material, strict=True):
        assert torch.equal(one.keys, other.keys) and torch.equal(one.sequences.tokens, other.sequences.tokens)
        assert other.advantage is None
        assert one.trajectory is not None and other.trajectory is not None
        assert torch.equal(one.trajectory.reveal_step, other.trajectory.reveal_step)
    assert bare.samples == []
    assert {name: float(mean.value) for name, mean in bare.metrics.items()} == {"rollout/forwards": 4.0}


def test_two_processes_share_what_one_does(tiny: DiffusionModel) -> None:
    one = _source(tiny, []).harvest(0, Layout(0, 1, 2, 2), 0)
    two = [_source(tiny, []).harvest(0, Layout(rank, 2, 2, 1), 0) for rank in range(2)]
    together = lambda parts: {  # noqa: E731
        int(key): (int(shared), tokens.tolist(), float(a))
        for m in parts
        for key, shared, tokens, a in zip(m.keys, m.group_keys, m.sequences.tokens, m.advantage, strict=True)
    }
    assert together(one.material) == together([m for harvest in two for m in harvest.material])
    assert len({shared for shared, *_ in together(one.material).values()}) == 4, "prompts"


def test_elbo_views_do_not_look_past_the_end(tiny: DiffusionModel) -> None:
    layout = Layout(0, 1, 1, 2)
    often = DiffusionModel(tiny.network, replace(tiny.spec, eos_ids=tuple(range(50))), tiny.tokenizer)
    whole = _source(often, []).harvest(0, layout, 0).material[0].sequences
    cut = _source(often, [], corruption={"type": "fixed_count"}).harvest(0, layout, 0).material[0].sequences
    assert whole.attend.all() and not torch.equal(whole.scored, whole.completion)
    assert torch.equal(cut.attend, ~cut.completion | cut.scored)


@pytest.mark.parametrize("completions", [1, 2])
def test_examples_follow_one_another(completions: int) -> None:
    rows = [Example([i], tuple([10 * i + c, 0] for c in range(completions))) for i in range(1, 4)]
    layout = Layout(0, 1, 1, 3)
    (material,) = ExampleSource(rows, 0, 0, torch.device("cpu")).harvest(0, layout, 0).material
    order = [visit_at(0, 0, slot, 3, 3).row for slot in range(3)]
    assert material.sequences.tokens.tolist() == [
        [rows[row].prompt[0], *ids] for row in order for ids in rows[row].completions
    ]
    assert len(set(material.keys.tolist())) == 3 * completions
