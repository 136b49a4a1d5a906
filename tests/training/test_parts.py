"""What a run trains and what an update leaves alone; the backward through planner and schedule scores."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dllm_rl.algorithms import SFT, Algorithm, Batch, CoGRPO, DUltra, Scores
from dllm_rl.algorithms.base import Loss, Material, Trained
from dllm_rl.diffusion.ledger import forced_coins_logp
from dllm_rl.diffusion.views import Views
from dllm_rl.errors import CheckpointError, RecipeError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.load import load_model
from dllm_rl.models.lora import add_lora
from dllm_rl.models.policy_head import attach_head, is_head_parameter
from dllm_rl.toys.model import tiny_llada
from dllm_rl.training.backward import backward, score_all, score_group, view_groups
from dllm_rl.training.checkpoint import load_weights
from dllm_rl.training.parts import freeze, idle_parameters, zero_share
from tests.algorithms.cases import make_batch
from tests.training.small import SmallDenoiser
from tests.training.test_trainer import TEXTS, _trainer


class Toggling(Algorithm):
    """Learns texts, and to write all that is hidden at once; the network in even updates, its planner in odd ones."""

    source: ClassVar[Literal["text", "pairs", "rollouts"]] = "text"
    citation: ClassVar[str] = ""
    head: ClassVar[Literal["planner", "schedule"] | None] = "planner"
    type: Literal["toggling"] = "toggling"

    def trains(self, update: int) -> Trained:
        return "head" if update % 2 else "network"

    def prepare(self, material: Material, keys: Tensor, mask_id: int) -> Batch:
        batch = SFT(num_draws=2).prepare(material, keys, mask_id)
        return replace(batch, views=replace(batch.views, open=batch.views.scored))

    def count(self, batch: Batch) -> float:
        return float(len(batch.views))

    def loss(self, batch: Batch, scores: Scores) -> Loss:
        assert scores.plan is not None and batch.views.open is not None
        scored, open_now = batch.views.scored[scores.view], batch.views.open[scores.view]
        joint = scores.logp.sum() + forced_coins_logp(scores.plan, scored, open_now).sum()
        return Loss((joint - 1.0) ** 2 * 1e-3, {})  # no sum over views


class Imitating(Toggling):
    """Only the planner learns, ever."""

    @property
    def learns(self) -> Trained:
        return "head"

    def trains(self, update: int) -> Trained:
        return self.learns


def planning(lora: bool = False) -> DiffusionModel:
    model = tiny_llada(layers=1)
    attach_head(model.network, {"type": "planner"})
    with torch.no_grad():
        model.network.planner.out.weight.normal_(generator=torch.Generator().manual_seed(0))
    return DiffusionModel(add_lora(model.network, {"r": 2}), model.spec, model.tokenizer) if lora else model


def moved(before: nn.Module, after: nn.Module) -> set[bool]:
    """Of which kinds some parameter is no longer bit for bit what it was: True is the head's."""
    old = dict(before.named_parameters())
    return {is_head_parameter(n) for n, p in after.named_parameters() if not torch.equal(p, old[n])}


@pytest.mark.parametrize("lora", [False, True])
def test_an_update_moves_what_it_trains_and_nothing_else(lora, tmp_path) -> None:
    model = planning(lora)
    first = copy.deepcopy(model.network)
    settings = {"optim": "adamw_torch", "learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 1.0}
    trainer = _trainer(model, Toggling(), TEXTS, tmp_path, **settings)
    trainer.train()
    assert moved(first, model.network) == {False}
    longer = planning(lora)
    trainer = _trainer(longer, Toggling(), TEXTS, tmp_path, **settings, max_steps=2)
    trainer.train()
    # The network's first update was the same, and the second, with its momentum and decay, passed it over.
    assert moved(model.network, longer.network) == {True}


class Empty(Toggling):
    """No view is left to learn from, as when a rollout's kept steps predicted nothing."""

    def prepare(self, material: Material, keys: Tensor, mask_id: int) -> Batch:
        batch = super().prepare(material, keys, mask_id)
        return replace(batch, views=batch.views.select(torch.zeros(0, dtype=torch.int64)))

    def loss(self, batch: Batch, scores: Scores) -> Loss:
        return Loss(-scores.logp.sum(), {})


def test_an_update_with_nothing_to_learn_changes_nothing(tmp_path) -> None:
    model = planning()
    first = copy.deepcopy(model.network)
    trainer = _trainer(model, Empty(), TEXTS, tmp_path)
    trainer.train()
    assert moved(first, model.network) == set() and trainer.state.log_history[0]["loss"] == 0.0


def test_what_never_learns_is_frozen(tmp_path) -> None:
    model = planning()
    first = copy.deepcopy(model.network)
    _trainer(model, Imitating(), TEXTS, tmp_path).train()
    assert moved(first, model.network) == {True}
    assert all(p.requires_grad == is_head_parameter(n) for n, p in model.network.named_parameters())
    with_head = planning()
    freeze(with_head.network, SFT())
    assert all(p.requires_grad != is_head_parameter(n) for n, p in with_head.network.named_parameters())
    assert idle_parameters(with_head.network, "network") == []


def test_a_head_of_its_own_learning_rate(tmp_path) -> None:
    model = planning()
    trainer = _trainer(model, Toggling(), TEXTS, tmp_path, weight_decay=0.1)
    trainer.head_learning_rate = 0.25
    groups = trainer.create_optimizer().param_groups
    of_head = {id(p) for n, p in model.network.named_parameters() if is_head_parameter(n)}
    for group in groups:
        kinds = {id(p) in of_head for p in group["params"]}
        assert len(kinds) == 1 and group["lr"] == (0.25 if kinds == {True} else 1.0)
    counted = [id(p) for group in groups for p in group["params"]]
    assert sorted(counted) == sorted(id(p) for p in model.network.parameters())
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1} and len(groups) == 4
    plain = _trainer(tiny_llada(layers=1), SFT(), TEXTS, tmp_path, weight_decay=0.1).create_optimizer()
    assert [group["lr"] for group in plain.param_groups] == [1.0, 1.0]


def test_a_model_without_the_head_is_refused(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"model.head: toggling trains a planner head and the model has none"):
        _trainer(tiny_llada(layers=1), Toggling(), TEXTS, tmp_path)
    network = tiny_llada(layers=1).network.requires_grad_(False)
    with pytest.raises(RecipeError, match="sft leaves nothing of this model to train"):
        freeze(network, SFT())


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    ("algorithm", "part"),
    [
        (DUltra(), "all"),
        (DUltra(parameters="network"), "network"),
        (DUltra(parameters="head"), "head"),
        (CoGRPO(network_updates=0), "head"),
        (CoGRPO(schedule_updates=0), "network"),
    ],
)
def test_what_never_has_a_turn_is_frozen_so_that_no_update_leaves_anything_idle(lora, algorithm, part) -> None:
    """An optimiser that steps over everything it was given, as DeepSpeed's, then serves it."""
    head = {"type": "planner"} if algorithm.head == "planner" else {"type": "schedule", "features": 3, "actions": 1}
    model = tiny_llada(layers=1)
    attach_head(model.network, head)
    model = DiffusionModel(add_lora(model.network, {"r": 2}), model.spec) if lora else model
    before = {n for n, p in model.network.named_parameters() if p.requires_grad}
    freeze(model.network, algorithm)
    after = {n for n, p in model.network.named_parameters() if p.requires_grad}
    assert after == {n for n in before if part in ("all", "head" if is_head_parameter(n) else "network")}
    assert idle_parameters(model.network, algorithm.trains(3)) == []


def test_a_head_that_the_adapter_has_no_place_for_is_refused(tmp_path) -> None:
    """PEFT would freeze it, and save the adapter without it."""
    tiny_llada(layers=1).save(tmp_path / "base")
    load_model(tmp_path / "base", lora={"r": 2}).save(tmp_path / "adapter")
    model = load_model(tmp_path / "adapter", head={"type": "planner"}, trainable=True)
    freeze(model.network, DUltra(parameters="network"))
    for algorithm in (DUltra(), DUltra(parameters="head")):
        with pytest.raises(RecipeError, match=r"dultra trains a planner, and the adapter was made without one"):
            freeze(model.network, algorithm)


@pytest.mark.parametrize("lora", [False, True])
def test_a_checkpoint_without_the_head_is_refused_in_one_line(lora, tmp_path) -> None:
    plain, headed = tiny_llada(layers=1), planning(lora)
    if lora:
        plain = DiffusionModel(add_lora(plain.network, {"r": 2}), plain.spec, plain.tokenizer)
    plain.save(tmp_path / "plain")
    with torch.no_grad():
        for parameter in headed.network.parameters():
            parameter.add_(0.5)
    headed.save(tmp_path / "headed")
    for model, folder in ((headed, "plain"), (plain, "headed")):
        with pytest.raises(CheckpointError, match="planner.*; resume with the recipe it was made with") as error:
            load_weights(model, tmp_path / folder)
        assert "\n" not in str(error.value)
    fresh = planning(lora)
    load_weights(fresh, tmp_path / "headed")
    trained = [n for n, p in fresh.network.named_parameters() if p.requires_grad]
    saved = dict(headed.network.named_parameters())
    assert trained and all(torch.equal(p, saved[n]) for n, p in fresh.network.named_parameters() if n in trained)


def test_weights_that_are_spread_are_not_waited_for(tmp_path) -> None:
    """FSDP asks for no gradient of what a forward did not run, and a sum of parts is no number to add."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        spread = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
        assert zero_share([spread]) is None
        whole = nn.Parameter(torch.ones(3))
        (torch.tensor(2.0) + zero_share([spread, whole])).backward()
        assert torch.equal(whole.grad, torch.zeros(3)) and spread.grad is None
    finally:
        distributed.destroy_process_group()


class Scheduled(SmallDenoiser):
    """With a schedule of one layer and a planner that reads the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = nn.Parameter(torch.randn(3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64))

    def schedule_at(self, features: Tensor) -> Tensor:
        return torch.tanh(features @ self.schedule)

    def score(self, canvas, tokens, where, attend=None, transform=None, *, open=None, **others):  # type: ignore[no-untyped-def]
        scores = super().score(canvas, tokens, where, attend, transform, **others)
        plan = None if open is None else self._logits(canvas, attend)[..., 1].masked_fill(~open, 0.0)
        return scores._replace(plan=plan)


class Shaping(Toggling):
    """A loss of the schedule's means that is no sum over views."""

    head: ClassVar[Literal["planner", "schedule"] | None] = "schedule"

    def loss(self, batch: Batch, scores: Scores) -> Loss:
        assert scores.schedule is not None and not scores.logp.any()
        return Loss((scores.schedule.sum() - 1.0) ** 2, {})


def both_ways(algorithm: Algorithm, batch: Batch, size: int, extra: int) -> tuple[list[Tensor], list[Tensor], int]:
    denoiser, everything = Scheduled(), torch.arange(len(batch.views))
    algorithm.loss(batch, score_group(denoiser, batch, everything)).total.backward()
    joint = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in denoiser.parameters()]
    denoiser.zero_grad()
    denoiser.forwards = 0
    backward(
        algorithm,
        batch,
        denoiser,
        denoiser,
        groups=view_groups(len(batch.views), size, extra),
        scale=1.0,
        group_context=lambda last: nullcontext(),
        back_propagate=lambda objective: objective.backward(),
    )
    grouped = [torch.zeros_like(p) if p.grad is None else p.grad for p in denoiser.parameters()]
    return joint, grouped, denoiser.forwards


@pytest.mark.parametrize(("size", "extra"), [(1, 0), (3, 0), (3, 9), (100, 0)])
def test_grouped_backward_through_a_planner_is_the_joint_graph(size, extra) -> None:
    batch = make_batch(SFT(num_draws=2))
    batch = replace(batch, views=replace(batch.views, open=batch.views.scored))
    joint, grouped, _ = both_ways(Toggling(), batch, size, extra)
    for wanted, got in zip(joint, grouped, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("size", "extra"), [(1, 0), (3, 9), (100, 0)])
def test_a_schedule_is_scored_without_the_network(size, extra) -> None:
    batch = make_batch(SFT(num_draws=2))
    features = torch.randn(len(batch.views), 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    batch = replace(batch, views=replace(batch.views, features=features))
    joint, grouped, forwards = both_ways(Shaping(), batch, size, extra)
    assert forwards == 0 and joint[-1].abs().min() > 0
    for wanted, got in zip(joint, grouped, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    everything = score_all(Scheduled(), batch, 3)
    assert everything.schedule is not None and not everything.schedule.requires_grad


def test_views_carry_what_a_step_was() -> None:
    views = make_batch(SFT(num_draws=2)).views
    count = len(views)
    rates = torch.arange(count).double()
    full = Views(views.canvas, views.scored, views.weight, views.row, None, views.scored, rates, -rates, rates[:, None])
    some = full.select(torch.tensor([3, 1])).to(torch.device("cpu"))
    assert some.open is not None and torch.equal(some.open, views.scored[[3, 1]])
    assert some.temperature is not None and some.temperature.tolist() == [3, 1]
    assert some.cfg_scale is not None and some.cfg_scale.tolist() == [-3, -1]
    assert some.features is not None and some.features.tolist() == [[3], [1]] and some.tokens is None
