"""Log-probabilities by tiles of the vocabulary against whole logits: values, both gradients, and what is allocated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dllm_rl.models import chosen
from dllm_rl.models.chosen import chosen_logp
from dllm_rl.models.heads import TokenHead

U, H, V = 6, 5, 40
FORBIDDEN = (0, 14, 15, 16, 17, 18, 19, 20, 39)
"""Among them a whole tile, where tiles are 7 or fewer ids wide."""
ROW = torch.tensor([0, 2, 2, 5, 4, 0, 2, 3])
"""Of row 1 nothing is asked, of row 2 three tokens, and one of them twice."""
TOKENS = torch.tensor([1, 13, 21, 38, 7, 1, 13, 6])


@pytest.fixture(params=[1, 7, 20, V, 1000])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Ids of a tile: one, some that do not divide the vocabulary, some that do, all, and more than there are."""
    monkeypatch.setattr(chosen, "TILE_ON_CPU", U * request.param)
    monkeypatch.setattr(chosen, "FEWEST_COLUMNS", 1)
    return int(request.param)


def some(dtype: torch.dtype = torch.float64, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, H, generator=generator, dtype=torch.float64) for n in (U, V))
    return (scale * hidden).to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def whole(hidden: Tensor, weight: Tensor, forbidden: Sequence[int] = ()) -> Tensor:
    """The definition: softmax over all logits, forbidden ids left out."""
    logits = hidden @ weight.T.to(hidden.dtype)
    return logits.index_fill(1, torch.tensor(forbidden, dtype=torch.int64), float("-inf")).log_softmax(1)[ROW, TOKENS]


def gradients(logp: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((logp * torch.linspace(-1, 2, len(logp), dtype=logp.dtype)).sum(), inputs)


@pytest.mark.parametrize("forbidden", [(), FORBIDDEN])
def test_values_and_gradients_are_those_of_whole_logits(width: int, forbidden: tuple[int, ...]) -> None:
    hidden, weight = some()
    found, wanted = chosen_logp(hidden, weight, ROW, TOKENS, forbidden), whole(hidden, weight, forbidden)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(found, hidden, weight), gradients(wanted, hidden, weight), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_what_was_given_is_not_written_over(width: int) -> None:
    hidden, weight = some()
    before = hidden.detach().clone(), weight.detach().clone()
    gradients(chosen_logp(hidden, weight, ROW, TOKENS, FORBIDDEN), hidden, weight)
    assert torch.equal(hidden, before[0]) and torch.equal(weight, before[1])


def test_the_largest_logit_may_be_in_any_tile_and_of_any_size(width: int) -> None:
    for place in range(V):
        hidden, weight = some()
        with torch.no_grad():
            weight[place] = 1e4 * hidden[2] / hidden[2].norm()
            weight[:, 0] -= 1e3
        found, wanted = chosen_logp(hidden, weight, ROW, TOKENS), whole(hidden, weight)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-10)
        assert found.isfinite().all() and (found <= 0).all()


def test_float32_is_as_near_to_float64_as_whole_logits_are(width: int) -> None:
    exact_inputs = some()
    exact = whole(*exact_inputs)
    parts = [(exact, *gradients(exact, *exact_inputs))]
    for way in (lambda h, w: chosen_logp(h, w, ROW, TOKENS), whole):
        inputs = some(torch.float32)
        value = way(*inputs)
        parts.append((value, *gradients(value, *inputs)))
    for truth, ours, theirs in zip(*parts, strict=True):
        error, usual, size = (float(x.detach().abs().max()) for x in (ours - truth, theirs - truth, truth))
        assert error <= 2 * usual + 1e-6 * size


def test_a_weight_in_half_precision_gets_its_gradient_rounded_once(width: int) -> None:
    """Repeated tokens are added up before: in bfloat16 every 256th of equal terms would be lost."""
    hidden, weight = some(torch.float32)
    weight = weight.detach().bfloat16().requires_grad_()
    row, tokens = torch.zeros(2000, dtype=torch.int64), torch.full((2000,), 21)
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    ours = torch.autograd.grad(chosen_logp(hidden, weight, row, tokens).sum(), (hidden, weight))
    logp = (exact_hidden @ exact_weight.T).log_softmax(1)[row, tokens]
    theirs = torch.autograd.grad(logp.sum(), (exact_hidden, exact_weight))
    assert ours[1].dtype == torch.bfloat16
    torch.testing.assert_close(ours[0].double(), theirs[0], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(ours[1].double(), theirs[1], rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("trained", [0, 1])
def test_only_what_is_trained_gets_a_gradient(trained: int) -> None:
    inputs = [x.detach() for x in some()]
    inputs[trained].requires_grad_()
    chosen_logp(*inputs, ROW, TOKENS).sum().backward()
    (wanted,) = torch.autograd.grad(whole(*inputs).sum(), inputs[trained])
    torch.testing.assert_close(inputs[trained].grad, wanted)
    assert inputs[1 - trained].grad is None


def test_nothing_asked_gives_gradients_of_zero(width: int) -> None:
    hidden, weight = some()
    nothing = torch.zeros(0, dtype=torch.int64)
    for rows in (hidden, hidden[:0]):
        logp = chosen_logp(rows, weight, nothing, nothing)
        assert logp.shape == (0,)
        found = torch.autograd.grad(logp.sum(), (hidden, weight))
        assert all(part.abs().sum() == 0 for part in found)


def test_a_hidden_state_of_no_number_is_seen(width: int) -> None:
    hidden, weight = (x.detach() for x in some())
    hidden[2, 1] = float("nan")
    assert chosen_logp(hidden, weight, ROW, TOKENS).isnan().tolist() == (ROW == 2).tolist()


def test_a_forbidden_token_has_probability_zero(width: int) -> None:
    found = chosen_logp(*some(), ROW[:2], torch.tensor([14, 13]), FORBIDDEN)
    assert found[0] == float("-inf") and found[1].isfinite()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_two_threads_add_in_one_order(two_threads: None) -> None:
    """Of sums over many tokens of few rows and few ids: killed and resumed runs end bit for bit alike."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(6, 64, generator=generator), torch.randn(50, 64, generator=generator)
    row, tokens = (torch.randint(0, high, (4096,), generator=generator) for high in (6, 50))
    gradient = torch.randn(4096, generator=generator)
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    first, *others = [
        torch.autograd.grad((chosen_logp(*inputs, row, tokens) * gradient).sum(), inputs) for _ in range(8)
    ]
    for each in others:
        assert all(torch.equal(*pair) for pair in zip(first, each, strict=True))


def test_a_head_asked_often_about_a_hidden_state_adds_in_one_order(two_threads: None) -> None:
    generator = torch.Generator().manual_seed(0)
    head, hidden = TokenHead(64, 50, bias=False), torch.randn(6, 64, generator=generator).requires_grad_()
    place, tokens = (torch.randint(0, high, (4096,), generator=generator) for high in (6, 50))
    temperature = torch.rand(4096, generator=generator, dtype=torch.float64) + 0.5
    first, *others = [
        torch.autograd.grad(head(hidden, tokens, place=place, temperature=temperature).logp.sum(), hidden)[0]
        for _ in range(8)
    ]
    assert all(torch.equal(first, each) for each in others)


@pytest.mark.parametrize("token", [-1, V])
def test_a_token_outside_the_vocabulary_is_refused(width: int, token: int) -> None:
    with pytest.raises(IndexError, match=f"expected ids below {V}"):
        chosen_logp(*some(), ROW[:2], torch.tensor([3, token]))


def test_there_is_no_second_derivative() -> None:
    hidden, weight = some()
    (gradient,) = torch.autograd.grad(chosen_logp(hidden, weight, ROW, TOKENS).sum(), hidden, create_graph=True)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.autograd.grad(gradient.sum(), hidden)


@pytest.mark.parametrize("autocast", [False, True])
def test_autocast_changes_nothing(autocast: bool) -> None:
    hidden, weight = some(torch.float32)
    expected = whole(hidden, weight)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = chosen_logp(hidden, weight, ROW, TOKENS)
        parts = gradients(found, hidden, weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(parts, gradients(expected, hidden, weight), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_torch_finds_the_operators_well_formed() -> None:
    """Schema, fake outputs, and what a compiler needs to know of the gradient."""
    hidden, weight = some(torch.float32)
    torch.library.opcheck(torch.ops.dllm_rl.chosen_logp.default, (hidden, weight, ROW, TOKENS, [3]))
    inputs = (torch.ones(len(ROW)), torch.zeros(U, 1), hidden.detach(), weight.detach(), ROW, TOKENS, [3])
    for of_weight in (True, False):
        torch.library.opcheck(torch.ops.dllm_rl.chosen_logp_backward.default, (*inputs, of_weight))


def test_no_more_than_a_tile_of_logits_is_ever_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vocabulary = 64, 5000
    monkeypatch.setattr(chosen, "TILE_ON_CPU", rows * 300)
    hidden, weight = torch.randn(rows, 16, requires_grad=True), torch.randn(vocabulary, 16, requires_grad=True)
    tokens = torch.randint(0, vocabulary, (rows,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        chosen_logp(hidden, weight, torch.arange(rows), tokens).sum().backward()
    allocated = sorted((event.self_cpu_memory_usage for event in recorded.events()), reverse=True)
    gradient, tile = vocabulary * 16 * 4, rows * 300 * 4
    assert allocated[:4] == [gradient, tile, tile, allocated[3]] and allocated[3] < tile / 4


def test_a_tile_takes_a_quarter_gigabyte_and_on_a_cpu_what_its_cache_holds() -> None:
    assert (4 * chosen.TILE, 4 * chosen.TILE_ON_CPU, chosen.FEWEST_COLUMNS) == (2**28, 2**22, 256)
    assert chosen.IN_ORDER == 32768, "torch's grain size"
