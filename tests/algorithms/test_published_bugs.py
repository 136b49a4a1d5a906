"""Sixteen bugs that recur in public code for RL of diffusion language models, each shown to be absent here.

The public code read is that of d1, MaskGRPO, IGPO, dUltra, LLaDOU, RemeDi, DMPO and CDLM. Where a bug's absence is
already tested beside the code it would live in, `ELSEWHERE` says where; the rest is here.

 1 iteration index from a counter of micro-steps (d1, MaskGRPO, IGPO)   2 masks of all iterations at once (MaskGRPO)
 3 tokens after the end of text trained (MaskGRPO, IGPO, DMPO)          4 global generator seeded anew (MaskGRPO, IGPO)
 5 old scores without, new ones with dropout (IGPO, d1)                 6 scored at another temperature (dUltra)
 7 forced choices not in the likelihood (dUltra)                        8 the group is the device batch (IGPO, MaskGRPO)
 9 a reward's column and value in the trainer's code (IGPO)            10 forwards depend on the process (IGPO, dUltra)
11 the branch with a KL term never run (dUltra, MaskGRPO)              12 prompts popped by a reward function (IGPO)
13 a fused cross-entropy that ignores weights (CDLM's kernel)          14 answers leak into hints (IGPO)
15 a released sampler that does not use the trained head (RemeDi)      16 left padding attended to (dUltra, RemeDi)
"""

from __future__ import annotations

import ast
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from dllm_rl.algorithms import Algorithm, DiffuGRPO, MaskGRPO, Scores
from dllm_rl.diffusion.transform import Transform
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.load import load_model
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.rollouts.text import decode_until_eos
from dllm_rl.samplers.generate import generate
from dllm_rl.samplers.names import FEATURES
from dllm_rl.toys.model import tiny_llada
from dllm_rl.training.backward import score_all
from dllm_rl.training.data import PromptRow
from dllm_rl.training.order import Layout
from dllm_rl.training.source import Harvest, RolloutSource
from tests.algorithms.cases import ALGORITHMS, ELBO, MASK, make_batch, make_material, make_scores

ROOT = Path(__file__).resolve().parents[2]
EACH = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
ON_VIEWS = {
    name: algorithm
    for name, algorithm in ALGORITHMS.items()
    if algorithm.source == "rollouts" and make_material(algorithm).trajectory is None
}
"""Methods that score the text. Those that replay rollouts score every draw, after the end of text too: it was drawn."""

ELSEWHERE = {
    1: [
        "tests/algorithms/test_diffu_grpo.py::test_released_mask_schedule_repeats_masks_and_the_default_does_not",
        "tests/training/test_trainer.py::test_a_rollout_serves_mu_updates_each_on_views_of_its_own",
    ],
    2: [
        "tests/algorithms/test_mask_grpo.py::test_what_is_visible_neither_counts_nor_learns",
        "tests/algorithms/test_contracts.py::test_a_loss_is_pure_and_its_gradient_stays_where_views_are_scored",
    ],
    5: [
        "tests/recipe/test_load.py::test_a_mistake_takes_one_line_that_says_where_and_what_to_do",
        "tests/models/test_lora.py::test_dropout_needs_permission",
        "tests/e2e/test_reference.py::test_dropout_is_for_sft_alone",
    ],
    6: [
        "tests/diffusion/test_replay.py::test_scoring_the_views_gives_what_the_rollout_recorded",
        "tests/training/test_trainer.py::test_recorded_behaviour_is_used_in_every_iteration_and_never_scored_again",
        "tests/algorithms/test_dultra.py::test_behaviour_is_what_the_rollout_recorded",
        "tests/algorithms/test_dultra.py::test_on_policy_ratios_are_one_and_the_gradient_is_reinforce",
    ],
    7: [
        "tests/samplers/test_every_rollout.py::test_a_planners_coins_with_a_forced_choice_sum_to_one",
        "tests/diffusion/test_ledger.py::test_coins_and_forced_coins_are_laws_in_every_row_of_a_batch",
        "tests/algorithms/test_dultra.py::test_expected_gradient_is_that_of_the_expected_reward",
        "tests/algorithms/test_dultra.py::test_the_published_rule_is_no_probability",
    ],
    8: ["tests/training/test_inpaint.py::test_any_layout_rescues_the_same_groups"],
    9: [
        "tests/training/test_inpaint.py::test_what_is_not_known_to_be_correct_is_not",
        "tests/algorithms/test_igpo.py::test_the_correct_channel_is_named_and_at_least_one_completion_can_be_replaced",
    ],
    10: [
        "tests/training/test_backward.py::test_groups_that_keep_processes_in_step_change_nothing",
        "tests/training/test_in_step.py::test_everyone_makes_the_forwards_of_the_busiest",
        "tests/e2e/test_igpo.py::test_processes_that_share_weights_may_differ_in_how_many_groups_fail",
        "tests/e2e/test_layouts.py::test_five_layouts_give_the_same_rollouts_and_parameters",
    ],
    12: ["tests/rollouts/test_rewards.py::test_a_function_cannot_change_what_the_next_sees"],
    13: [
        "tests/models/test_scoring.py::test_scores_and_gradients_equal_the_dense_computation",
        "tests/models/test_families.py::test_scores_and_gradients_equal_the_transcription",
    ],
    14: [
        "tests/rollouts/test_hints.py::test_no_hint_shows_the_answer_wherever_it_stands",
        "tests/rollouts/test_hints.py::test_a_token_is_hidden_exactly_if_it_shares_a_character_with_the_answer",
        "tests/recipe/test_hints.py::test_rows_of_a_run_have_traces_without_answers",
        "tests/training/test_traces.py::test_rows_that_cannot_be_stripped_are_refused",
    ],
    15: [
        "tests/e2e/test_planner.py::test_from_a_teacher_to_a_planner_that_decodes",
        "tests/e2e/test_co_grpo.py::test_turns_leave_the_other_part_as_it_is_and_the_schedule_decodes",
        "tests/models/test_export.py::test_a_head_that_the_published_code_would_leave_out_is_refused",
    ],
    16: [
        "tests/models/test_scoring.py::test_left_padding_changes_nothing",
        "tests/models/test_families.py::test_left_padding_changes_nothing",
    ],
}


def test_what_is_tested_elsewhere_is() -> None:
    for references in ELSEWHERE.values():
        for reference in references:
            file, _, name = reference.partition("::")
            defined = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
            assert name in {node.name for node in defined if isinstance(node, ast.FunctionDef)}, reference


@EACH
def test_1_which_views_an_iteration_uses_does_not_depend_on_accumulation(algorithm: Algorithm) -> None:
    for num_micro_batches in (1, 2, 3, 8):
        for micro_batch in range(num_micro_batches):
            indices = [algorithm.iteration_index(n, micro_batch, num_micro_batches) for n in range(12)]
            assert indices == list(range(12))


@pytest.mark.parametrize("algorithm", ON_VIEWS.values(), ids=ON_VIEWS)
def test_3_nothing_after_the_end_of_text_is_scored_or_learned_from(algorithm: Algorithm) -> None:
    material = make_material(algorithm)
    whole = material.sequences
    ended = replace(whole, scored=whole.scored & (whole.scored.cumsum(1) <= 2))  # two tokens and then the end
    batch = algorithm.prepare(replace(material, sequences=ended), material.keys, MASK)
    batch = replace(batch, advantage=torch.tensor([1.0, -1.0, 0.5, -0.5], dtype=torch.float64))
    after = whole.completion & ~ended.scored
    assert after.any() and not (batch.views.scored & after[batch.views.row]).any()
    scores = make_scores(replace(batch, views=replace(batch.views, scored=torch.ones_like(batch.views.scored))))
    if algorithm.needs_reference:
        batch = replace(batch, reference_logp=scores.logp.detach() - 0.5)
    (gradient,) = torch.autograd.grad(algorithm.loss(batch, scores).total, scores.logp)
    assert gradient.any() and not gradient[after[batch.views.row]].any()
    assert algorithm.count(batch) <= 8


def test_3_rollouts_are_scored_up_to_their_first_end(tiny: DiffusionModel) -> None:
    often = DiffusionModel(tiny.network, replace(tiny.spec, eos_ids=tuple(range(30))), tiny.tokenizer)
    out = LocalEngine(often, RolloutSettings(gen_length=6)).generate([[40], [41, 42]], torch.tensor([1, 2]))
    for scored, completion in zip(out.sequences().scored[:, 2:].tolist(), out.completions, strict=True):
        end = next((i for i, token in enumerate(completion) if token < 30), 5)
        assert scored == [i <= end for i in range(6)]


@EACH
def test_4_nothing_reads_or_seeds_a_global_generator(algorithm: Algorithm, tiny: DiffusionModel) -> None:
    def states() -> tuple[Any, ...]:
        # Python's own is read by the type checker of the test suite; that nothing depends on it is seen below.
        return torch.get_rng_state().tolist(), str(numpy.random.get_state())

    def everything() -> tuple[Any, ...]:
        material = make_material(algorithm)
        batch = algorithm.prepare(material, material.keys, MASK)
        out = LocalEngine(tiny, RolloutSettings(gen_length=3)).generate([[40], [41]], torch.tensor([1, 2]))
        return batch.views.canvas.tolist(), out.completions

    torch.manual_seed(0)
    before, first = states(), everything()
    assert states() == before
    torch.manual_seed(1)
    random.seed(1)
    assert everything() == first


def test_5_scores_are_the_same_before_and_in_the_update(tiny: DiffusionModel) -> None:
    """In training mode, as the update's, and in evaluation mode, as the rollout's."""
    batch = make_batch(DiffuGRPO(), moved=False)
    ids = batch.views.canvas % 90
    batch = replace(batch, views=replace(batch.views, canvas=ids))
    tiny.network.train()
    training = score_all(tiny, batch, 2).logp
    tiny.network.eval()
    assert torch.equal(score_all(tiny, batch, 2).logp, training)


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_6_the_temperature_and_guidance_drawn_with_are_those_scored_under(
    tiny: DiffusionModel, cfg_scale: float
) -> None:
    """And scoring at temperature 1 without guidance, as published, gives other numbers."""
    settings = RolloutSettings(gen_length=4, steps=2, temperature=0.4, cfg_scale=cfg_scale)
    out = LocalEngine(tiny, settings).generate([[40], [41, 42]], torch.tensor([1, 2]))
    algorithm = ALGORITHMS["cj_grpo"]
    material = replace(make_material(algorithm), sequences=out.sequences(), trajectory=out)
    batch = algorithm.prepare(material, material.keys, tiny.spec.mask_id)
    assert batch.transform == out.transform and batch.behaviour_logp is not None
    torch.testing.assert_close(score_all(tiny, batch, 10).logp.double(), batch.behaviour_logp, atol=1e-5, rtol=0)
    plain = Transform(forbidden_ids=out.transform.forbidden_ids)
    published = score_all(tiny, replace(batch, transform=plain), 10).logp
    assert (published - batch.behaviour_logp).abs().max() > 0.1


ROWS = [PromptRow([40 + i, 41 + i], f"p{i}", {"answer": str(i)}) for i in range(6)]


def source(model: DiffusionModel, panel: RewardPanel, algorithm: Algorithm | None = None) -> RolloutSource:
    engine = LocalEngine(model, RolloutSettings(gen_length=4, steps=2))
    decode, device = decode_until_eos(model), torch.device("cpu")
    return RolloutSource(ROWS, 5, engine, panel, algorithm or DiffuGRPO(), 3, decode, device)


def total(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(sum(ids) % 11) for ids in completion_ids]


def length(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


def advantages(harvest: Harvest) -> torch.Tensor:
    return torch.cat([material.advantage for material in harvest.material if material.advantage is not None])


@pytest.mark.parametrize("per_device", [1, 2, 4])
def test_8_a_group_is_a_prompts_completions_however_many_prompts_share_a_batch(
    tiny: DiffusionModel, per_device: int
) -> None:
    harvest = source(tiny, RewardPanel([total])).harvest(0, Layout(0, 1, 4 // per_device, per_device), 0)
    assert all(len(material.sequences) == 3 * per_device for material in harvest.material)
    found = advantages(harvest).view(4, 3)
    rewards = torch.tensor([sample.reward for sample in harvest.samples], dtype=torch.float64).view(4, 3)
    assert len(set(rewards.mean(1).tolist())) > 1, "groups of unlike means tell them from the batch"
    torch.testing.assert_close(found, rewards - rewards.mean(1, keepdim=True))


def test_9_what_a_reward_function_is_called_where_it_stands_and_what_it_pays_change_nothing(
    tiny: DiffusionModel,
) -> None:
    layout = Layout(0, 1, 2, 2)
    first = advantages(source(tiny, RewardPanel([total, length], weights=[1.0, 2.0])).harvest(0, layout, 0))
    turned = advantages(source(tiny, RewardPanel([length, total], weights=[2.0, 1.0])).harvest(0, layout, 0))
    torch.testing.assert_close(turned, first)
    raised = lambda completion_ids, **columns: [7.5 + 4 * r for r in total(completion_ids)]  # noqa: E731
    scaled = advantages(source(tiny, RewardPanel([raised, length], weights=[0.25, 2.0])).harvest(0, layout, 0))
    torch.testing.assert_close(scaled, first)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("algorithm", [DiffuGRPO, MaskGRPO])
def test_11_one_update_a_rollout_and_a_divergence_from_a_reference_that_is_another_model(
    algorithm: type[DiffuGRPO] | type[MaskGRPO], estimator: Any
) -> None:
    method = algorithm(updates_per_rollout=1, kl_coefficient=0.3, kl_estimator=estimator)
    plain = algorithm(updates_per_rollout=1, kl_coefficient=0.0)
    batch = make_batch(method, moved=False)
    scores = make_scores(batch)
    assert batch.reference_logp is not None and batch.behaviour_logp is None
    share = batch.views.weight / batch.views.scored.sum(1, keepdim=True)
    d = scores.logp - batch.reference_logp
    penalty = {"k1": d, "k2": d.square() / 2, "k3": torch.exp(-d) - 1 + d}[estimator]
    expected = plain.loss(replace(batch, reference_logp=None), scores).total + 0.3 * (share * penalty).sum()
    loss = method.loss(batch, scores).total
    torch.testing.assert_close(loss, expected)
    (found,), (wanted,) = (torch.autograd.grad(x, scores.logp) for x in (loss, expected))
    torch.testing.assert_close(found, wanted)


def test_12_a_reward_function_that_eats_its_arguments_does_no_harm(tiny: DiffusionModel) -> None:
    def eats(prompts: list[Any], completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        values = [float(len(set(completions.pop()))) for _ in range(len(prompts))]
        while prompts:
            prompts.pop()
            answer.pop()
        return values[::-1]

    eating, layout = source(tiny, RewardPanel([eats, length])), Layout(0, 1, 2, 2)
    first, second = (eating.harvest(0, layout, 0) for _ in range(2))
    plain = source(tiny, RewardPanel([length], weights=[2.0])).harvest(0, layout, 0)
    assert torch.equal(advantages(first), advantages(second)) and torch.equal(advantages(first), advantages(plain))
    assert [row.prompt for row in ROWS] == [f"p{i}" for i in range(6)]


def test_13_every_token_of_every_view_counts_with_its_own_weight() -> None:
    """Not with the first one's: on ELBO views weights differ between views."""
    algorithm = DiffuGRPO(corruption=ELBO, num_draws=3, kl_coefficient=0)
    batch = make_batch(algorithm, moved=False)
    scores = make_scores(batch)
    assert batch.advantage is not None and len(set(batch.views.weight[batch.views.scored].tolist())) > 3
    (gradient,) = torch.autograd.grad(algorithm.loss(batch, Scores(scores.logp, scores.view)).total, scores.logp)
    lengths = batch.sequences.scored.sum(1)
    for view, row in enumerate(batch.views.row.tolist()):
        expected = -batch.advantage[row] * batch.views.weight[view] / lengths[row] / 3
        torch.testing.assert_close(gradient[view], expected)


HEADS: dict[str, dict[str, Any]] = {
    "planner": {"type": "planner"},
    "schedule": {"type": "schedule", "features": len(FEATURES), "actions": 1},
}


@pytest.mark.parametrize("lora", [None, {"r": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("kind", HEADS)
def test_15_what_is_saved_decodes_with_the_head_that_was_trained(kind: str, lora: Any, tmp_path: Path) -> None:
    """Opposite heads, found again on disk by nothing but the folder: one writes all at once, one token by token.

    The manual schedule takes three steps, and writes what is left in the last.
    """
    tiny_llada(layers=1).save(tmp_path / "base")
    way: dict[str, Any] = {"sampler": kind, "gen_length": 6, "temperature": 1.0, "steps": None}
    if kind == "schedule":
        way["steps"] = 3
    forwards = []
    for bias in (30.0, -30.0):
        model = load_model(tmp_path / "base", head=HEADS[kind], lora=lora)
        with torch.no_grad():  # as training would, had it come to this
            for name, parameter in model.network.named_parameters():
                if parameter.requires_grad and name.endswith(("out.bias", "layers.4.bias")):
                    parameter.fill_(bias)
        model.save(tmp_path / f"{bias}")
        trained, found = (generate(m, [[40], [41, 42]], **way) for m in (model, load_model(tmp_path / f"{bias}")))
        assert found.completions == trained.completions
        forwards.append(found.nfe)
    assert forwards == [[1, 1], {"planner": [6, 6], "schedule": [5, 5]}[kind]]
