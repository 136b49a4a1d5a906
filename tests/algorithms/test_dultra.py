"""dUltra against the paper's sums, and its expected gradient, enumerated, against that of the expected reward."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dllm_rl.algorithms import DUltra, Scores
from dllm_rl.algorithms.base import Material
from dllm_rl.diffusion.replay import replay
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.generate import generate
from dllm_rl.training.backward import score_group
from tests.algorithms.cases import MASK, make_batch, make_material, make_scores
from tests.diffusion.tabular import Planned

CLIPS = {"clip_low": 0.2, "clip_high": 0.3}


def choice_logp(plan: Tensor, chosen: Tensor, opened: Tensor, *, exact: bool = True) -> Tensor:
    """Of one step: coins, and the likeliest position where none falls heads."""
    p = torch.sigmoid(plan / 0.8)
    places, taken = opened.nonzero()[:, 0].tolist(), chosen.nonzero()[:, 0].tolist()
    likeliest = min(places, key=lambda i: (-float(plan[i].detach()), i))
    tails = sum((torch.log(1 - p[i]) for i in places if i not in taken), torch.zeros(()).double())
    if exact and taken == [likeliest]:
        return tails
    return tails + sum(torch.log(p[i]) for i in taken)


@pytest.mark.parametrize("reduction", ["sum_over_length", "sum", "mean_active_steps"])
@pytest.mark.parametrize("forced_rule", ["exact", "published"])
def test_the_loss_is_the_papers_sum_over_steps(reduction: str, forced_rule: str) -> None:
    algorithm = DUltra(reduction=reduction, forced_rule=forced_rule, kl_coefficient=0.1, **CLIPS)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    expected = torch.zeros((), dtype=torch.float64)
    for view, row in enumerate(batch.views.row.tolist()):
        where, opened = batch.views.scored[view], batch.views.open[view]
        choice = choice_logp(scores.plan[view], where, opened, exact=forced_rule == "exact")
        new = scores.logp[view][where].sum() + choice
        old = batch.behaviour_logp[view][where].sum() + batch.selection_logp[view]
        rho, a = torch.exp(new - old), batch.advantage[row]
        apart = batch.reference_logp[view][where] - scores.logp[view][where]
        k3 = (torch.exp(apart) - apart - 1).sum()
        steps = int((batch.views.row == row).sum())
        share = {"sum_over_length": 1 / 4, "sum": 1.0, "mean_active_steps": 1 / steps}[reduction]
        expected = expected - share * (torch.minimum(rho * a, torch.clamp(rho, 0.8, 1.3) * a) - 0.1 * k3)
    torch.testing.assert_close(algorithm.loss(batch, scores).total, expected)
    assert algorithm.count(batch) == 4


def test_factors_have_a_ratio_for_the_choice_and_one_for_each_token() -> None:
    algorithm = DUltra(ratio_level="factors", reduction="sum", **CLIPS)
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    expected = torch.zeros((), dtype=torch.float64)
    for view, row in enumerate(batch.views.row.tolist()):
        where, a = batch.views.scored[view], batch.advantage[row]
        choice = choice_logp(scores.plan[view], where, batch.views.open[view]) - batch.selection_logp[view]
        rho = torch.exp(torch.cat([scores.logp[view][where] - batch.behaviour_logp[view][where], choice[None]]))
        expected = expected - torch.minimum(rho * a, torch.clamp(rho, 0.8, 1.3) * a).sum()
    torch.testing.assert_close(algorithm.loss(batch, scores).total, expected)


@pytest.mark.parametrize("level", ["step", "factors"])
@pytest.mark.parametrize("reduction", ["sum_over_length", "sum", "mean_active_steps"])
def test_on_policy_ratios_are_one_and_the_gradient_is_reinforce(level: str, reduction: str) -> None:
    """Coins: 1 - p where one fell heads, -p where tails, nothing for the likeliest when it was written alone."""
    algorithm = DUltra(ratio_level=level, reduction=reduction)
    batch = make_batch(algorithm, moved=False)
    scores = make_scores(batch)
    plan = scores.plan.detach().clone().requires_grad_()
    choice = torch.stack(
        [choice_logp(plan[v], batch.views.scored[v], batch.views.open[v]) for v in range(len(batch.views))]
    )
    (slope,) = torch.autograd.grad(choice.sum(), plan)
    batch = replace(batch, selection_logp=choice.detach())
    logp = batch.behaviour_logp.clone().requires_grad_()
    loss = algorithm.loss(batch, Scores(logp, scores.view, plan))
    of_tokens, of_coins = torch.autograd.grad(loss.total, (logp, plan))
    steps = batch.views.row.bincount()
    share = {"sum_over_length": torch.full((4,), 0.25), "sum": torch.ones(4), "mean_active_steps": 1 / steps}
    weight = (batch.advantage * share[reduction].double())[batch.views.row][:, None]
    torch.testing.assert_close(of_tokens, -weight * batch.views.scored)
    torch.testing.assert_close(of_coins, -weight * slope)
    assert loss.metrics["policy/ratio"].value == pytest.approx(1.0, abs=1e-12)
    assert loss.metrics["policy/clipped"].value == 0.0


def test_behaviour_is_what_the_rollout_recorded() -> None:
    """The published rule alone has nothing to be compared with but the policy's own number."""
    algorithm = DUltra()
    material = make_material(algorithm)
    assert material.trajectory is not None
    found = replay(material.trajectory, material.sequences)
    batch = algorithm.prepare(material, material.keys, MASK)
    assert torch.equal(batch.behaviour_logp, found.behaviour_logp)
    assert torch.equal(batch.selection_logp, found.selection_logp)
    assert torch.equal(batch.views.open, found.open)
    assert (batch.transform, batch.planner_temperature) == (material.trajectory.transform, 0.8)
    published = DUltra(forced_rule="published", ratio_level="factors")
    batch = make_batch(published, moved=False)
    assert batch.selection_logp is None
    scores = make_scores(batch)
    loss = published.loss(batch, Scores(batch.behaviour_logp, scores.view, scores.plan))
    assert loss.metrics["policy/ratio"].value == 1.0


def test_the_whole_canvas_is_shown_and_every_draw_scored_after_the_end_of_text_too() -> None:
    algorithm = DUltra()
    material = make_material(algorithm)
    ended = replace(material.sequences, scored=material.sequences.scored & (torch.arange(6) < 4))
    assert torch.equal(algorithm.scope(ended).attend, ended.attend)
    batch = algorithm.prepare(replace(material, sequences=ended), material.keys, MASK)
    assert int(batch.views.scored.sum()) == 4 * 4


def test_advantages_below_a_floor_teach_nothing() -> None:
    reward = torch.tensor([[0.0, 1.0, 1.5, 2.5]], dtype=torch.float64)
    for floor, expected in (
        (None, [-1.25, -0.25, 0.25, 1.25]),
        (-0.25, [0.0, -0.25, 0.25, 1.25]),
        (0.5, [0.0, 0.0, 0.0, 1.25]),
    ):
        assert DUltra(advantage_floor=floor).advantages(reward).tolist() == [expected]


def test_what_is_reported_of_the_planner() -> None:
    algorithm = DUltra()
    batch = make_batch(algorithm)
    scores = make_scores(batch)
    metrics = algorithm.loss(batch, scores).metrics
    chance = torch.sigmoid(scores.plan.detach() / 0.8)[batch.views.open]
    assert metrics["planner/probability"].value == pytest.approx(float(chance.mean()))
    assert metrics["planner/tokens_per_step"].value == pytest.approx(4 * 4 / len(batch.views))


def test_rollouts_without_a_planners_likelihood_are_refused() -> None:
    algorithm = DUltra()
    material = make_material(algorithm)
    assert material.trajectory is not None
    for change, message in (
        ({"planner_temperature": None}, "dultra: the rollouts' positions were not chosen by the coins of a planner"),
        ({"transform": replace(material.trajectory.transform, top_k=3)}, "dultra: the rollouts were drawn with top_p"),
        ({"exactness": "approximate_cache"}, "dultra: the rollouts were made through an approximate cache"),
    ):
        other = replace(material, trajectory=replace(material.trajectory, **change))
        with pytest.raises(RecipeError, match=message):
            algorithm.prepare(other, material.keys, MASK)


def test_the_published_rule_cannot_reuse_a_rollout() -> None:
    with pytest.raises(ValidationError, match="forced_rule is published and updates_per_rollout is 2"):
        DUltra(forced_rule="published", updates_per_rollout=2)


def test_what_is_trained_can_be_the_head_or_the_network_alone() -> None:
    assert [DUltra(parameters=part).trains(3) for part in ("all", "network", "head")] == ["all", "network", "head"]


class Toy:
    """Every rollout after the prompt [1], with its reward: some tokens are worth more, and so are fewer steps."""

    def __init__(self, words: int, length: int) -> None:
        self.model = Planned(seed=3, words=words, longest=1 + length)
        self.tables = []
        for tables in (self.model.tables, self.model.planner.tables):
            tables[1 + length] *= 0.2  # so that every rollout turns up
            self.tables.append(tables[1 + length].requires_grad_())
        many = generate(self.model, [[1]] * 8000, sampler="planner", gen_length=length, temperature=0.7)
        orders = [str(row) for row in zip(many.completions, many.reveal_step.tolist(), strict=True)]
        self.rollouts: Trajectory = many.select(list({order: row for row, order in enumerate(orders)}.values()))
        reward = [
            float(sum(text) % 4 + 2 * (text[0] == text[1])) - nfe / 2
            for text, nfe in zip(self.rollouts.completions, self.rollouts.nfe, strict=True)
        ]
        self.reward = torch.tensor(reward, dtype=torch.float64)

    def probability(self) -> Tensor:
        """Of every rollout, differentiable: tokens and coins."""
        material = Material(self.rollouts.sequences(), self.rollouts.keys, None, self.rollouts)
        batch = DUltra().prepare(material, self.rollouts.keys, self.model.spec.mask_id)
        scores = score_group(self.model, batch, torch.arange(len(batch.views)))
        each = [
            choice_logp(0.8 * scores.plan[v], batch.views.scored[v], batch.views.open[v])
            for v in range(len(batch.views))
        ]
        step = scores.logp.sum(1) + torch.stack(each)
        return torch.zeros(len(self.rollouts), dtype=torch.float64).index_add(0, batch.views.row, step).exp()

    def expected_gradient(self, algorithm: DUltra, probability: Tensor) -> list[Tensor]:
        """Of minus the mean loss, over all groups of two rollouts, each as often as it comes."""
        pairs = torch.tensor(list(product(range(len(probability)), repeat=2)))
        chance = probability[pairs].prod(1, keepdim=True)
        advantage = algorithm.advantages(self.reward[pairs]) * chance  # the loss is linear in it where ratios are 1
        groups = self.rollouts.select(pairs.flatten().tolist())
        material = Material(groups.sequences(), groups.keys, advantage.flatten(), groups)
        batch = algorithm.prepare(material, groups.keys, self.model.spec.mask_id)
        scores = score_group(self.model, batch, torch.arange(len(batch.views)))
        return list(torch.autograd.grad(-algorithm.loss(batch, scores).total / 2, self.tables))


@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("mean", 0.5)])
@pytest.mark.parametrize("level", ["step", "factors"])
@pytest.mark.parametrize(("words", "length"), [(3, 2), (2, 3)])
def test_expected_gradient_is_that_of_the_expected_reward(
    words: int, length: int, level: str, baseline: str, share: float
) -> None:
    toy = Toy(words, length)
    probability = toy.probability()
    assert float(probability.detach().sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(probability.detach(), toy.rollouts.behaviour_logp.exp())
    expected = torch.autograd.grad((probability * toy.reward).sum(), toy.tables)
    algorithm = DUltra(reduction="sum", ratio_level=level, baseline=baseline)
    for found, gradient in zip(toy.expected_gradient(algorithm, probability.detach()), expected, strict=True):
        assert float(gradient.norm()) > 0.01
        torch.testing.assert_close(found, share * gradient, rtol=0, atol=1e-12)


def test_the_papers_reduction_is_that_gradient_over_the_length() -> None:
    toy = Toy(3, 2)
    probability = toy.probability()
    expected = torch.autograd.grad((probability * toy.reward).sum(), toy.tables)
    found = toy.expected_gradient(DUltra(baseline="leave_one_out"), probability.detach())
    for part, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(part, gradient / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "published", [{"forced_rule": "published"}, {"advantage_floor": 0.1}, {"reduction": "mean_active_steps"}], ids=str
)
def test_how_far_other_settings_are_from_that_gradient(published: dict[str, object]) -> None:
    """The published rule for a forced step moves the head's gradient alone; the numbers are in docs/dultra.md."""
    toy = Toy(3, 2)
    probability = toy.probability()
    expected = torch.autograd.grad((probability * toy.reward).sum(), toy.tables)
    algorithm = DUltra(**{"baseline": "leave_one_out", "reduction": "sum", **published})
    found = toy.expected_gradient(algorithm, probability.detach())
    network, head = (
        float(torch.nn.functional.cosine_similarity(part.flatten(), gradient.flatten(), dim=0))
        for part, gradient in zip(found, expected, strict=True)
    )
    print(f"{published}: cosine with the policy gradient, network {network:.3f}, head {head:.3f}")
    assert head < 0.999
    assert (network > 1 - 1e-9) == ("forced_rule" in published)


def test_the_published_rule_is_no_probability() -> None:
    """Over all choices it sums to 1 minus the chance that no coin falls heads."""
    plan, opened = torch.tensor([0.3, -1.0, -0.4], dtype=torch.float64), torch.ones(3).bool()
    chosen = [torch.tensor(c) for c in product([False, True], repeat=3) if any(c)]
    exact = sum(float(choice_logp(0.8 * plan, c, opened).exp()) for c in chosen)
    published = sum(float(choice_logp(0.8 * plan, c, opened, exact=False).exp()) for c in chosen)
    assert exact == pytest.approx(1.0)
    assert published == pytest.approx(1 - float((1 - plan.sigmoid()).prod()))
