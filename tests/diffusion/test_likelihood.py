from __future__ import annotations

import math
from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
from torch import Tensor

from dllm_rl.diffusion.corruption import CORRUPTORS, Bernoulli, Complementary, FixedCount
from dllm_rl.diffusion.likelihood import elbo, elbo_draws, exact_elbo, score_views
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.diffusion.transform import Transform
from dllm_rl.diffusion.views import Views
from dllm_rl.rng import sample_keys
from tests.diffusion.tabular import Tabular

WORDS = [2, 0, 1, 1]
ELBO_CORRUPTORS = [name for name in CORRUPTORS if name != "fully_hidden"]


@pytest.fixture
def model() -> Tabular:
    return Tabular()


def conditional(model: Tabular, tokens: list[int], hidden: tuple[int, ...], position: int) -> float:
    """log p(token at `position` | the tokens that are not hidden)."""
    canvas = torch.tensor([[model.spec.mask_id if i in hidden else t for i, t in enumerate(tokens)]])
    logits = model.logits(canvas)[0, position]
    return float(logits[tokens[position]] - logits.exp().sum().log())


def sums_over_hidden_sets(model: Tabular, tokens: list[int], start: int) -> dict[tuple[int, ...], float]:
    """Sum of the hidden tokens' log-probs, for every non-empty hidden set of the positions from `start` on."""
    places = range(start, len(tokens))
    sets = [u for size in range(1, len(places) + 1) for u in combinations(places, size)]
    return {u: sum(conditional(model, tokens, u, i) for i in u) for u in sets}


def by_orders(model: Tabular, tokens: list[int], start: int) -> float:
    """Mean over the orders in which tokens can be revealed of the log-probability of revealing them so."""
    orders = list(permutations(range(start, len(tokens))))
    return sum(
        conditional(model, tokens, order[step:], order[step]) for order in orders for step in range(len(order))
    ) / len(orders)


def by_quadrature(model: Tabular, tokens: list[int], start: int, floor: float = 0.0) -> float:
    """The mean over t in (floor, 1) of the 1 / t weighted sum, each token hidden with probability t."""
    n = len(tokens) - start
    nodes, weights = np.polynomial.legendre.leggauss(8)  # exact: the integrand is a polynomial in t of degree n - 1
    levels = floor + (1 - floor) * (nodes + 1) / 2
    sums = sums_over_hidden_sets(model, tokens, start)
    return sum(
        w / 2 * t ** len(u) * (1 - t) ** (n - len(u)) / t * total
        for t, w in zip(levels, weights, strict=True)
        for u, total in sums.items()
    )


# --- the exact value -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_enumeration_reveal_orders_and_continuous_time_agree(seed: int, start: int) -> None:
    model = Tabular(seed)
    exact = exact_elbo(model, WORDS[:start], WORDS[start:])
    assert exact == pytest.approx(by_orders(model, WORDS, start), abs=1e-9)
    assert exact == pytest.approx(by_quadrature(model, WORDS, start), abs=1e-9)


def test_the_elbo_is_below_the_log_likelihood_of_revealing_in_random_order(model: Tabular) -> None:
    orders = list(permutations(range(4)))
    paths = [sum(conditional(model, WORDS, order[step:], order[step]) for step in range(4)) for order in orders]
    likelihood = math.log(sum(math.exp(path) for path in paths) / len(orders))
    assert exact_elbo(model, [], WORDS) < likelihood - 1e-3


def test_one_token_has_its_log_probability(model: Tabular) -> None:
    assert exact_elbo(model, [2, 1], [0]) == pytest.approx(conditional(model, [2, 1, 0], (2,), 2), abs=1e-12)


def test_elbos_of_independent_tokens_sum_to_one(model: Tabular) -> None:
    """When no token depends on another, the ELBO is the log-likelihood, and likelihoods of all texts sum to 1."""
    for n, table in model.tables.items():
        model.tables[n] = table[:1].expand_as(table)
    total = sum(math.exp(exact_elbo(model, [], text)) for text in product(range(model.size), repeat=3))
    assert total == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("length", [0, 15])
def test_enumeration_refuses_nothing_and_too_much(model: Tabular, length: int) -> None:
    with pytest.raises(ValueError, match=f"the completion has {length} tokens; enumeration takes 1 to 14"):
        exact_elbo(model, [1], [0] * length)


def test_enumeration_takes_fourteen_tokens() -> None:
    """A model that hides how it was hidden: every token costs log(4), in any context."""

    class Even(Tabular):
        def logits(self, canvas: Tensor, attend: Tensor | None = None) -> Tensor:
            return torch.zeros(*canvas.shape, self.size, dtype=torch.float64)

    assert exact_elbo(Even(), [1], [0] * 14) == pytest.approx(-14 * math.log(4), abs=1e-9)


# --- the estimate ----------------------------------------------------------------------------------------------------


def many(model: Tabular, corruptor: str, rows: int = 3000, draws: int = 4, seed: int = 0) -> Tensor:
    """`rows` independent estimates of the ELBO of WORDS[1:] given WORDS[:1]."""
    return elbo(
        model,
        [WORDS[:1]] * rows,
        [WORDS[1:]] * rows,
        num_draws=draws,
        corruptor=corruptor,
        seed=seed,
        views_per_forward=8192,
    ).value


@pytest.mark.parametrize("corruptor", ELBO_CORRUPTORS)
def test_the_estimate_is_unbiased(model: Tabular, corruptor: str) -> None:
    values = many(model, corruptor)
    expected = by_quadrature(model, WORDS, 1, floor=1e-3 if corruptor == "bernoulli" else 0.0)
    assert abs(float(values.mean()) - expected) < 3.3 * float(values.std()) / len(values) ** 0.5  # p = 1e-3


def test_variance_falls_from_bernoulli_to_fixed_counts_to_stratified_counts_and_pairs(model: Tabular) -> None:
    for index in range(model.size**4):  # as in language, tokens become surer as more of them are seen
        visible = sum(index // model.size**i % model.size != model.spec.mask_id for i in range(4))
        model.tables[4][index, range(4), WORDS] += 1.5 * visible
    sd = {name: float(many(model, name).std()) for name in ELBO_CORRUPTORS}
    independent = elbo(
        model,
        [WORDS[:1]] * 3000,
        [WORDS[1:]] * 3000,
        num_draws=4,
        corruptor=FixedCount(stratified=False),
        views_per_forward=8192,
    )
    sd["independent"] = float(independent.value.std())
    assert sd["bernoulli"] > 1.5 * sd["independent"]
    assert sd["independent"] > 1.1 * sd["fixed_count"]
    assert sd["independent"] > 1.1 * sd["antithetic"]
    assert sd["independent"] > 1.1 * sd["complementary"]
    assert sd["fixed_count"] > 1.03 * sd["balanced"]


def test_variance_of_independent_draws_falls_as_one_over_their_number(model: Tabular) -> None:
    few, more = (
        elbo(
            model,
            [[]] * 4000,
            [WORDS] * 4000,
            num_draws=draws,
            corruptor=FixedCount(stratified=False),
            views_per_forward=8192,
        ).value.var()
        for draws in (1, 4)
    )
    assert float(few / more) == pytest.approx(4.0, rel=0.12)


def test_shared_views_make_the_difference_of_close_models_quiet(model: Tabular) -> None:
    near = Tabular()
    near.tables = {n: table + 0.05 * Tabular(7).tables[n] for n, table in model.tables.items()}
    apart = many(near, "fixed_count", seed=1) - many(model, "fixed_count", seed=0)
    shared = many(near, "fixed_count") - many(model, "fixed_count")
    assert float(apart.var()) > 50 * float(shared.var())
    assert torch.equal(many(model, "fixed_count"), many(model, "fixed_count"))


@pytest.mark.parametrize("corruptor", list(CORRUPTORS))
def test_a_rows_estimate_does_not_depend_on_the_rows_beside_it(model: Tabular, corruptor: str) -> None:
    prompts, completions, ids = [[], [0, 2], [1]], [[1, 0], [2, 2], [0]], [5, 9, 5]
    together = elbo(model, prompts, completions, corruptor=corruptor, sample_ids=ids, seed=3)
    assert together.draws.shape == (3, 8)
    for row in range(3):
        alone = elbo(
            model,
            prompts[row : row + 1],
            completions[row : row + 1],
            corruptor=corruptor,
            sample_ids=ids[row : row + 1],
            seed=3,
            views_per_forward=3,
        )
        assert torch.allclose(alone.draws[0], together.draws[row], rtol=0, atol=1e-12)
        assert torch.allclose(alone.value[0], together.value[row], rtol=0, atol=1e-12)


def test_sample_ids_count_from_zero_and_key_the_draws_with_the_seed(model: Tabular) -> None:
    rows = [[]] * 3, [WORDS] * 3
    default = elbo(model, *rows).draws
    assert torch.equal(elbo(model, *rows, sample_ids=[0, 1, 2], seed=0).draws, default)
    assert torch.equal(elbo(model, *rows, sample_ids=[2, 1, 0]).draws, default.flip(0))
    assert not torch.equal(elbo(model, *rows, seed=1).draws, default)
    assert not torch.equal(default[0], default[1])
    same = elbo(model, *rows, sample_ids=[4, 4, 4]).draws
    assert torch.equal(same[0], same[1])


def test_value_and_standard_error_are_those_of_the_draws(model: Tabular) -> None:
    estimate = elbo(model, [[1]], [[0, 2, 1]], num_draws=5, corruptor=FixedCount(stratified=False))
    draws = estimate.draws[0].tolist()
    mean = sum(draws) / 5
    assert float(estimate.value) == pytest.approx(mean, rel=1e-12)
    variance = sum((d - mean) ** 2 for d in draws) / 4
    assert float(estimate.std_error) == pytest.approx(math.sqrt(variance / 5), rel=1e-12)


@pytest.mark.parametrize("corruptor", ["antithetic", "complementary"])
def test_the_standard_error_of_pairs_is_over_the_means_of_pairs(model: Tabular, corruptor: str) -> None:
    estimate = elbo(model, [[1]], [[0, 2, 1]], num_draws=6, corruptor=corruptor)
    a, b, c, d, e, f = estimate.draws[0].tolist()
    pairs = [(a + b) / 2, (c + d) / 2, (e + f) / 2]
    mean = sum(pairs) / 3
    assert float(estimate.std_error) == pytest.approx(math.sqrt(sum((p - mean) ** 2 for p in pairs) / 2 / 3), rel=1e-12)


@pytest.mark.parametrize(("corruptor", "draws"), [("fixed_count", 1), ("antithetic", 2), ("complementary", 2)])
def test_a_single_estimate_has_no_standard_error(model: Tabular, corruptor: str, draws: int) -> None:
    estimate = elbo(model, [[1], []], [[0], [1, 2]], num_draws=draws, corruptor=corruptor)
    assert estimate.std_error.isnan().all()
    assert estimate.value.isfinite().all()


@pytest.mark.filterwarnings("error")
def test_a_single_estimate_does_not_warn(model: Tabular) -> None:
    elbo(model, [[1]], [[0]], num_draws=1)


def test_the_standard_error_covers_the_spread_of_independent_draws(model: Tabular) -> None:
    estimate = elbo(
        model,
        [[]] * 2000,
        [WORDS] * 2000,
        num_draws=16,
        corruptor=FixedCount(stratified=False),
        views_per_forward=8192,
    )
    spread = float(estimate.value.std())
    assert float(estimate.std_error.square().mean() ** 0.5) == pytest.approx(spread, rel=0.08)


def test_fully_hidden_is_the_one_step_likelihood(model: Tabular) -> None:
    estimate = elbo(model, [[]], [[2, 0]], num_draws=3, corruptor="fully_hidden")
    expected = conditional(model, [2, 0], (0, 1), 0) + conditional(model, [2, 0], (0, 1), 1)
    assert estimate.draws[0].tolist() == pytest.approx([expected] * 3, abs=1e-12)


def test_corruptors_can_be_given_as_objects(model: Tabular) -> None:
    by_name = elbo(model, [[]], [WORDS], corruptor="bernoulli").draws
    assert torch.equal(elbo(model, [[]], [WORDS], corruptor=Bernoulli()).draws, by_name)


def test_eight_stratified_draws_is_the_default(model: Tabular) -> None:
    assert torch.equal(
        elbo(model, [[]], [WORDS]).draws, elbo(model, [[]], [WORDS], num_draws=8, corruptor=FixedCount(), seed=0).draws
    )


def test_pads_count_only_when_they_are_given(model: Tabular) -> None:
    """The pad id is a token like any other where a caller wrote it."""
    model = Tabular(eos_ids=(0,))
    with_pads = exact_elbo(model, [0, 1], [2, 0])
    assert with_pads == pytest.approx(by_orders(model, [0, 1, 2, 0], 2), abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corruptor": "fixed"}, "corruptor is 'fixed'; expected one of fixed_count, bernoulli, antithetic"),
        ({"sample_ids": [1]}, "1 sample_ids for 2 rows"),
        ({"num_draws": 0}, "num_draws is 0"),
        ({"completions": [[1], []]}, "row 1 of the sequences has no scored position"),
        ({"completions": [[1]]}, "2 prompts and 1 completions"),
        ({"prompts": [], "completions": []}, "0 prompts and 0 completions"),
    ],
)
def test_what_cannot_be_estimated_is_refused(model: Tabular, arguments: dict, message: str) -> None:
    call = {"prompts": [[1], [2]], "completions": [[0], [1]], **arguments}
    with pytest.raises(ValueError, match=message):
        elbo(model, call.pop("prompts"), call.pop("completions"), **call)


# --- scoring and adding up -------------------------------------------------------------------------------------------


def some_views(corruptor: str = "fixed_count") -> tuple:
    sequences = sequences_from_ids([[1], [0, 2]], [[2, 0], [1]], 0)
    return sequences, CORRUPTORS[corruptor]().views(sequences, 4, sample_keys(0, torch.arange(2)), 3)


@pytest.mark.parametrize("views_per_forward", [1, 3, 8, 100])
def test_scores_do_not_depend_on_how_views_are_grouped(model: Tabular, views_per_forward: int) -> None:
    sequences, views = some_views("fully_hidden")
    scores = score_views(model, sequences, views, views_per_forward=views_per_forward, entropy=True)
    assert scores.entropy is not None
    for r in range(len(views)):
        row = int(views.row[r])
        present = sequences.attend[row]
        canvas = views.canvas[r][present][None]
        logp = model.logits(canvas)[0].log_softmax(-1)
        for place, position in enumerate(present.nonzero()[:, 0].tolist()):
            scored = bool(views.scored[r, position])
            token = int(sequences.tokens[row, position])
            assert float(scores.logp[r, position]) == pytest.approx(float(logp[place, token]) * scored, abs=1e-12)
            entropy = -float((logp[place].exp() * logp[place]).sum())
            assert float(scores.entropy[r, position]) == pytest.approx(entropy * scored, abs=1e-12)
    assert (scores.logp[~views.scored] == 0).all()


def test_entropy_is_none_unless_asked_for(model: Tabular) -> None:
    sequences, views = some_views()
    assert score_views(model, sequences, views, views_per_forward=8).entropy is None


def test_the_transform_and_the_prompt_reach_the_model(model: Tabular) -> None:
    sequences, views = some_views()
    transform = Transform(temperature=0.7, cfg_scale=1.5, forbidden_ids=(3,))
    scores = score_views(model, sequences, views, views_per_forward=3, transform=transform)
    row = views.row[4]
    canvas, prompt = views.canvas[4:5], sequences.prompt[row][None]
    attend = sequences.attend[row][None]
    blind = model.logits(canvas.masked_fill(prompt, 3), attend)
    logits = blind + 2.5 * (model.logits(canvas, attend) - blind)
    logits[..., 3] = -math.inf
    logp = (logits / 0.7).log_softmax(-1).gather(-1, sequences.tokens[row][None, :, None])[..., 0]
    assert torch.allclose(scores.logp[4], logp[0].where(views.scored[4], torch.tensor(0.0).double()))


def test_a_view_that_scores_nothing_is_worth_zero(model: Tabular) -> None:
    sequences = sequences_from_ids([[1]], [[0]], 0)
    views = Bernoulli().views(sequences, 40, sample_keys(0, torch.arange(1)), 3)
    empty = ~views.scored.any(-1)
    assert empty.any()
    scores = score_views(model, sequences, views, views_per_forward=1)
    assert (elbo_draws(scores.logp, views, 1)[0][empty] == 0).all()


def test_draws_are_weighted_sums_by_sequence_and_draw() -> None:
    _, views = some_views()
    logp = torch.randn(views.canvas.shape, generator=torch.Generator().manual_seed(0))
    draws = elbo_draws(logp, views, 2)
    assert draws.shape == (2, 4)
    assert draws.dtype == torch.float64
    for b in range(2):
        for k in range(4):
            r = 4 * b + k
            expected = sum(
                float(logp[r, i]) * float(views.weight[r, i]) for i in range(logp.shape[1]) if views.scored[r, i]
            )
            assert float(draws[b, k]) == pytest.approx(expected, rel=1e-12)


def test_what_is_not_scored_does_not_leak_into_draws() -> None:
    _, views = some_views()
    logp = torch.full(views.canvas.shape, -1.0)
    clean = elbo_draws(logp, views, 2)
    wild = logp.masked_fill(~views.scored, -math.inf).requires_grad_()
    draws = elbo_draws(wild, views, 2)
    assert torch.equal(draws.detach(), clean)
    draws.sum().backward()
    assert wild.grad is not None
    assert torch.allclose(wild.grad.double(), views.weight, rtol=1e-6)


def test_views_out_of_order_are_refused() -> None:
    _, views = some_views()
    logp = torch.zeros(views.canvas.shape)
    for index in ([1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 0, 1, 2, 3], [0, 4, 1, 5, 2, 6, 3, 7]):
        part = views.select(torch.tensor(index))
        with pytest.raises(ValueError, match="2 sequences are not the same number for each, in order"):
            elbo_draws(logp[: len(part)], part, 2)


def test_the_public_estimates_carry_no_gradient_and_scored_views_do(model: Tabular) -> None:
    for table in model.tables.values():
        table.requires_grad_()
    assert not elbo(model, [[1]], [[0, 2]]).value.requires_grad
    exact_elbo(model, [[1][0]], [0, 2])
    sequences, views = some_views()
    scores = score_views(model, sequences, views, views_per_forward=3)
    elbo_draws(scores.logp, views, 2).sum().backward()
    assert model.tables[3].grad is not None


def test_the_mean_gradient_of_the_estimate_is_the_gradient_of_the_exact_elbo(model: Tabular) -> None:
    table = model.tables[3].requires_grad_()
    tokens = [2, 0, 1]
    exact = torch.zeros((), dtype=torch.float64)
    for hidden in [u for size in (1, 2, 3) for u in combinations(range(3), size)]:
        canvas = torch.tensor([[3 if i in hidden else t for i, t in enumerate(tokens)]])
        logp = model.logits(canvas)[0].log_softmax(-1)
        exact = exact + sum(logp[i, tokens[i]] for i in hidden) / (len(hidden) * math.comb(3, len(hidden)))
    (expected,) = torch.autograd.grad(exact, table)
    sequences = sequences_from_ids([[]] * 4000, [tokens] * 4000, 0)
    views = Complementary().views(sequences, 2, sample_keys(0, torch.arange(4000)), 3)
    draws = elbo_draws(score_views(model, sequences, views, views_per_forward=8192).logp, views, 4000)
    (seen,) = torch.autograd.grad(draws.mean(), table)
    assert float((seen - expected).norm() / expected.norm()) < 0.03


def test_scoring_stored_views_twice_gives_the_same_numbers(model: Tabular) -> None:
    sequences, views = some_views()
    stored = Views(*(getattr(views, name).clone() for name in ("canvas", "scored", "weight", "row")))
    first = score_views(model, sequences, views, views_per_forward=2).logp
    assert torch.equal(score_views(model, sequences, stored, views_per_forward=5).logp, first)
