"""Planner and schedule heads: what a new one does, that training, saving and loading keep it, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from dllm_rl.diffusion.ledger import forced_coins_logp
from dllm_rl.diffusion.likelihood import score_views
from dllm_rl.diffusion.replay import replay
from dllm_rl.diffusion.transform import Transform, guide
from dllm_rl.errors import CheckpointError, ModelContractError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.load import load_model
from dllm_rl.models.policy_head import attach_head, head_of, is_head_parameter
from dllm_rl.samplers.generate import generate
from dllm_rl.toys import families
from dllm_rl.toys.model import tiny_llada

PLANNER = {"type": "planner"}
SCHEDULE = {"type": "schedule", "features": 3, "actions": 2, "width": 8}


def shaken(model: DiffusionModel) -> DiffusionModel:
    """Every trainable weight moved, so that nothing is zero by construction."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def canvas_of(model: DiffusionModel, rows: int = 2, length: int = 9) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(5, 20, (rows, length), generator=torch.Generator().manual_seed(1))
    hidden = torch.arange(length) >= torch.tensor([4, 6])[:rows, None]
    return tokens.masked_fill(hidden, model.spec.mask_id), hidden


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head") / "base"
    tiny_llada(layers=1).save(folder)
    return folder


def test_a_new_planner_gives_every_position_one_chance_and_leaves_the_tokens_alone(base) -> None:
    plain, model = load_model(base), load_model(base, head={**PLANNER, "initial_logit": -1.5})
    canvas, hidden = canvas_of(model)
    logits, plan = model.plan_at(canvas, hidden)
    assert torch.equal(plan, torch.full((int(hidden.sum()),), -1.5))
    assert torch.equal(logits, plain.logits_at(canvas, hidden))


FAMILIES = [
    tiny_llada,
    families.tiny_dream,
    families.tiny_llada_moe,
    families.tiny_llada2,
    families.tiny_sdar,
    families.tiny_sdar_moe,
]


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
def test_every_family_takes_a_planner_and_keeps_it(make, tmp_path) -> None:
    model = make()
    attach_head(model.network, PLANNER)
    shaken(model)
    canvas, hidden = canvas_of(model, rows=1, length=8)
    logits, plan = model.plan_at(canvas, hidden)
    assert len(plan.unique()) == len(plan) and plan.isfinite().all()
    model.save(tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    found, named = loaded.network.state_dict(), model.network.state_dict()
    assert found.keys() == named.keys() and all(torch.equal(found[name], named[name]) for name in named)
    torch.testing.assert_close(loaded.plan_at(canvas, hidden), (logits, plan), atol=1e-5, rtol=1e-5)


def test_padding_and_batching_change_no_plan(base) -> None:
    model = shaken(load_model(base, head=PLANNER))
    canvas, hidden = canvas_of(model)
    alone = torch.cat([model.plan_at(canvas[i : i + 1], hidden[i : i + 1])[1] for i in range(2)])
    together = model.plan_at(canvas, hidden)[1]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    pad = torch.full((2, 3), model.spec.mask_id)  # counted, they would change the time
    attend = torch.cat([torch.zeros_like(pad, dtype=torch.bool), torch.ones_like(hidden)], dim=1)
    where = torch.cat([torch.zeros_like(pad, dtype=torch.bool), hidden], dim=1)
    padded = model.plan_at(torch.cat([pad, canvas], dim=1), where, attend)[1]
    torch.testing.assert_close(padded, together, atol=1e-5, rtol=1e-5)


def test_time_is_the_share_that_is_written_and_what_is_open_is_seen(base) -> None:
    model = shaken(load_model(base, head=PLANNER))
    canvas, hidden = canvas_of(model)
    assert model._plan_inputs(canvas, hidden, None)["time"].tolist() == pytest.approx([4 / 9, 6 / 9])
    fewer = hidden.clone()
    fewer[:, -1] = False
    plan = model.score(canvas, canvas, ~hidden, open=hidden).plan
    other = model.score(canvas, canvas, ~hidden, open=fewer).plan
    assert plan is not None and other is not None
    assert (plan[fewer] - other[fewer]).abs().min() > 0 and (plan[~hidden] == 0).all() and (other[:, -1] == 0).all()


def test_scores_and_plans_of_one_forward_are_those_of_two(base) -> None:
    model = shaken(load_model(base, head=PLANNER))
    canvas, hidden = canvas_of(model)
    tokens = canvas.roll(1, 1).masked_fill(canvas.roll(1, 1) == model.spec.mask_id, 7)
    both = model.score(canvas, tokens, hidden, open=hidden, transform=Transform(0.5))
    assert torch.equal(both.logp, model.score(canvas, tokens, hidden, transform=Transform(0.5)).logp)
    assert both.plan is not None and torch.equal(both.plan[hidden], model.plan_at(canvas, hidden)[1])


def test_each_row_can_have_its_own_temperature_and_guidance() -> None:
    model = tiny_llada(layers=1)
    canvas, hidden = canvas_of(model)
    tokens = canvas.masked_fill(hidden, 7)
    prompt = ~hidden & (torch.arange(9) < 3)
    temperature, scale = torch.tensor([0.3, 1.7]).double(), torch.tensor([0.0, 2.5]).double()
    transform = Transform(temperature=9.0, cfg_scale=9.0, forbidden_ids=(model.spec.mask_id,))
    got = model.score(
        canvas, tokens, hidden, transform=transform, prompt=prompt, temperature=temperature, cfg_scale=scale
    )
    blind = model.logits(canvas.masked_fill(prompt, model.spec.mask_id))
    guided = guide(model.logits(canvas), blind, scale[:, None, None].expand(2, 9, 1))
    logits = guided.index_fill(2, torch.tensor([model.spec.mask_id]), -math.inf) / temperature[:, None, None]
    expected = logits.log_softmax(2).gather(2, tokens[..., None])[..., 0].masked_fill(~hidden, 0)
    torch.testing.assert_close(got.logp, expected.float(), atol=1e-5, rtol=1e-5)


def test_a_rollout_that_records_its_predictions_asks_the_planner_what_any_other_does(base) -> None:
    """All that is hidden is asked about, and the planner is told that the block alone is open."""
    model = shaken(load_model(base, head=PLANNER))
    way = {"sampler": "planner", "gen_length": 6, "block_length": 3, "temperature": 1.0}
    plain, recorded = (generate(model, [[7, 8], [9]] * 3, record_predictions=r, **way) for r in (False, True))
    assert recorded.completions == plain.completions and recorded.nfe == plain.nfe
    torch.testing.assert_close(recorded.selection_logp, plain.selection_logp, rtol=0, atol=1e-5)
    found = replay(recorded, recorded.sequences())
    views = replace(found.views, open=found.open)
    plan = score_views(model, recorded.sequences(), views, views_per_forward=50, transform=recorded.transform).plan
    logp = forced_coins_logp(plan.double(), views.scored, views.open)
    torch.testing.assert_close(logp, found.selection_logp, rtol=0, atol=1e-5)


def test_a_new_schedule_changes_nothing_and_the_network_is_not_run(base) -> None:
    model = load_model(base, head=SCHEDULE)
    features = torch.randn(5, 3)
    assert torch.equal(model.schedule_at(features), torch.zeros(5, 2))
    model.network.model.register_forward_hook(lambda *_: pytest.fail("the network was run"))
    assert shaken(model).schedule_at(features).abs().min() > 0


@pytest.mark.parametrize("head", [PLANNER, SCHEDULE], ids=lambda head: head["type"])
def test_an_adapter_trains_the_head_whole_and_brings_it_along(head, base, tmp_path) -> None:
    model = load_model(base, head=head, lora={"r": 2})
    named = dict(model.network.named_parameters())
    assert not [name for name in named if "lora" in name and is_head_parameter(name)]
    trained = {name for name, parameter in named.items() if parameter.requires_grad and is_head_parameter(name)}
    assert trained and all(".modules_to_save." in name for name in trained)
    shaken(model).save(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/policy_head.json").read_text()) == head
    loaded = load_model(tmp_path / "adapter")
    found = load_model(tmp_path / "adapter", trainable=True)
    assert head_of(loaded.network) == head_of(model.network) == head["type"]
    assert {n for n, p in found.network.named_parameters() if p.requires_grad} == {
        n for n, p in named.items() if p.requires_grad
    }
    plain = PeftModel.from_pretrained(load_model(base, head=head).network, str(tmp_path / "adapter")).eval()
    for other in (loaded.network, plain):
        for name, value in other.named_parameters():
            assert torch.equal(value, named[name]), name


def test_the_reference_has_the_head_that_training_started_from(base) -> None:
    model = load_model(base, head=PLANNER, lora={"r": 2})
    canvas, hidden = canvas_of(model)
    before = model.plan_at(canvas, hidden)[1]
    shaken(model)
    assert not torch.equal(model.plan_at(canvas, hidden)[1], before)
    with model.reference() as reference:
        assert torch.equal(reference.plan_at(canvas, hidden)[1], before)


def test_a_head_stays_float32_under_a_half_precision_network(base, tmp_path) -> None:
    model = load_model(base, head=PLANNER, dtype="bfloat16")
    shaken(model).save(tmp_path / "saved")
    loaded = load_model(tmp_path / "saved", dtype="auto")
    for each in (model, loaded):
        kinds = {is_head_parameter(n): p.dtype for n, p in each.network.named_parameters()}
        assert kinds == {True: torch.float32, False: torch.bfloat16}
    canvas, hidden = canvas_of(model)
    torch.testing.assert_close(model.plan_at(canvas, hidden)[1], loaded.plan_at(canvas, hidden)[1])


def test_equal_settings_give_equal_heads_and_draw_from_no_generator_of_ours(base) -> None:
    torch.manual_seed(5)
    first = load_model(base, head=SCHEDULE).network.schedule.state_dict()
    after = torch.rand(1)
    torch.manual_seed(6)
    second = load_model(base, head=SCHEDULE).network.schedule.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(5)
    load_model(base)
    assert torch.equal(torch.rand(1), after)


def test_a_head_that_was_saved_is_kept_and_another_kind_is_refused(base, tmp_path) -> None:
    model = shaken(load_model(base, head=PLANNER))
    model.save(tmp_path / "saved")
    kept = load_model(tmp_path / "saved", head={**PLANNER, "initial_logit": 3.0})
    assert torch.equal(kept.network.planner.out.bias, model.network.planner.out.bias)
    with pytest.raises(CheckpointError, match="has a planner head and"):
        load_model(tmp_path / "saved", head=SCHEDULE)


def test_a_schedule_of_another_size_is_refused(base, tmp_path) -> None:
    load_model(base, head=SCHEDULE).save(tmp_path / "saved")
    assert load_model(tmp_path / "saved", head={**SCHEDULE, "width": 9}).network.schedule.layers[0].out_features == 8
    with pytest.raises(CheckpointError, match="schedule head has 2 actions and 3 are asked for"):
        load_model(tmp_path / "saved", head={**SCHEDULE, "actions": 3})
    with pytest.raises(CheckpointError, match="schedule head has 3 features and 4 are asked for"):
        load_model(tmp_path / "saved", head={**SCHEDULE, "features": 4})


def test_what_cannot_be_is_refused_in_one_line(base, tmp_path) -> None:
    plain = load_model(base)
    canvas, hidden = canvas_of(plain)
    with pytest.raises(ModelContractError, match="needs a planner head and the model has none"):
        plain.plan_at(canvas, hidden)
    with pytest.raises(ModelContractError, match="needs a planner head and the model has none"):
        plain.score(canvas, canvas, ~hidden, open=hidden)
    with pytest.raises(ModelContractError, match="needs a schedule head and the model has planner"):
        load_model(base, head=PLANNER).schedule_at(torch.zeros(1, 3))
    with pytest.raises(ModelContractError, match="head.type is 'planer'; expected one of planner, schedule"):
        load_model(base, head={"type": "planer"})
    with pytest.raises(ModelContractError, match="does not make a planner.*colour"):
        load_model(base, head={**PLANNER, "colour": "red"})
    with pytest.raises(ModelContractError, match="has a planner already"):
        attach_head(load_model(base, head=PLANNER).network, SCHEDULE)
    model = load_model(base, head=PLANNER, lora={"r": 2})
    model.save(tmp_path / "adapter")
    (tmp_path / "adapter/policy_head.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"policy_head.json cannot be read"):
        load_model(tmp_path / "adapter")
