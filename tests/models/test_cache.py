"""The cache by columns: exact where it says so, stale exactly where it says so, and never read where it must not be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dllm_rl.diffusion.denoiser import CachingDenoiser, KeyValues
from dllm_rl.errors import ModelContractError
from dllm_rl.models import DiffusionModel
from dllm_rl.toys.families import tiny_dream, tiny_llada2, tiny_llada_moe, tiny_sdar
from dllm_rl.toys.model import tiny_llada

LENGTH = 11
SHIFTED, BLOCKS = {"logit_shift": 1}, {"block_size": 4}
KINDS = {"both ways": {}, "shifted": SHIFTED, "blocks": BLOCKS, "shifted blocks": SHIFTED | BLOCKS}
PADS = torch.tensor([0, 3, 5])


def far_from_uniform(model: DiffusionModel) -> DiffusionModel:
    with torch.no_grad():
        model.network.model.embed_tokens.weight.mul_(30)
    return model


def make(kind: str = "both ways", implementation: str = "sdpa", kv_heads: int = 2) -> DiffusionModel:
    """Grouped keys, and float64 to tell rounding from mistakes."""
    model = far_from_uniform(tiny_llada(seed=4, kv_heads=kv_heads))
    model.network.double().set_attn_implementation(implementation)
    model.spec = replace(model.spec, **KINDS[kind])
    return model


def ids(seed: int, rows: int = 3, length: int = LENGTH) -> Tensor:
    return torch.randint(0, 90, (rows, length), generator=torch.Generator().manual_seed(seed))


def some(seed: int, share: float, rows: int = 3, length: int = LENGTH) -> Tensor:
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < share


def everything(canvas: Tensor) -> Tensor:
    return torch.ones_like(canvas, dtype=torch.bool)


def padded(length: int = LENGTH) -> Tensor:
    return torch.arange(length) >= PADS[:, None]


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


def assert_differ(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() > 1e-3


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_refreshing_everything_is_the_plain_forward(kind: str, implementation: str, pads: bool) -> None:
    model = make(kind, implementation)
    attend = padded() if pads else None
    cache = model.open_cache(3, LENGTH)
    for seed in range(2):  # the second time over what the first one left
        canvas, where = ids(seed), some(seed, 0.4)
        where[1] = False
        found = model.logits_through(cache, canvas, everything(canvas), where, attend)
        with torch.no_grad():
            assert_same(found, model.logits_at(canvas, where, attend))


def test_single_precision() -> None:
    model = make()
    model.network.float()
    canvas, where = ids(0), some(0, 0.4)
    found = model.logits_through(model.open_cache(3, LENGTH), canvas, everything(canvas), where)
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, model.logits_at(canvas, where), atol=1e-5, rtol=0)


def test_the_model_is_what_the_samplers_ask_for() -> None:
    model = make()
    assert isinstance(model, CachingDenoiser) and isinstance(model.open_cache(1, 2), KeyValues)


@contextmanager
def projections(model: DiffusionModel, change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Let `change` see and replace the output of every key and value projection."""
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: change(name, output))
        for name, module in model.network.named_modules()
        if name.endswith(("k_proj", "v_proj"))
    ]
    yield
    for handle in handles:
        handle.remove()


class LastVisit:
    """The definition, in plain forwards: columns that are not refreshed put in the projections of their last visit."""

    def __init__(self, model: DiffusionModel) -> None:
        self.model = model
        self.last: dict[str, Tensor] = {}

    def logits(self, canvas: Tensor, refresh: Tensor, where: Tensor, attend: Tensor | None) -> Tensor:
        def change(name: str, output: Tensor) -> Tensor:
            before = self.last.get(name, output)
            self.last[name] = torch.where(refresh[..., None], output, before)
            return self.last[name]

        with torch.no_grad(), projections(self.model, change):
            return self.model.logits_at(canvas, where, attend)


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["both ways", "blocks"])
def test_other_columns_are_as_of_their_last_visit(kind: str, implementation: str, pads: bool) -> None:
    model = make(kind, implementation)
    attend = padded() if pads else None
    cache, definition = model.open_cache(3, LENGTH), LastVisit(model)
    for step, share in enumerate((1.0, 0.5, 0.2, 0.6)):
        canvas, refresh = ids(step), some(step, share)
        where = refresh & some(step + 10, 0.7)
        found = model.logits_through(cache, canvas, refresh, where, attend)
        assert_same(found, definition.logits(canvas, refresh, where, attend))
        if step:
            with torch.no_grad():
                assert_differ(found, model.logits_at(canvas, where, attend))


def test_everything_refreshed_again_is_exact() -> None:
    model = make()
    cache = model.open_cache(3, LENGTH)
    nothing = torch.zeros(3, LENGTH, dtype=torch.bool)
    for step, share in enumerate((1.0, 0.5, 0.2)):
        model.logits_through(cache, ids(step), some(step, share), nothing)
    where = some(9, 0.4)
    found = model.logits_through(cache, ids(5), everything(ids(5)), where)
    with torch.no_grad():
        assert_same(found, model.logits_at(ids(5), where))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_know_nothing_of_each_other(kind: str) -> None:
    """Rows that refresh different columns, and different numbers of them, one of them none."""
    model, attend = make(kind), padded()
    refreshed = [everything(ids(0)), some(1, 0.5), some(2, 0.3)]
    refreshed[2][0] = False
    assert len(set(refreshed[1].sum(1).tolist())) > 1
    together = model.open_cache(3, LENGTH)
    alone = [model.open_cache(1, LENGTH) for _ in range(3)]
    for step, refresh in enumerate(refreshed):
        where = refresh & some(step + 10, 0.7)
        found = model.logits_through(together, ids(step), refresh, where, attend)
        parts = [
            model.logits_through(alone[b], *(x[b : b + 1] for x in (ids(step), refresh, where, attend)))
            for b in range(3)
            if refresh[b].any()
        ]
        assert_same(found, torch.cat(parts))


def test_selected_rows_go_their_own_ways() -> None:
    """Repeats fork, omissions compact; neither the fork nor its source sees what the other writes."""
    model = make()
    where = some(9, 0.5)
    source = model.open_cache(3, LENGTH)
    model.logits_through(source, ids(0), everything(ids(0)), where)
    index = torch.tensor([2, 0, 2, 2])
    fork = source.select(index)
    canvas = ids(1, rows=4)
    refresh = some(2, 0.5, rows=4)
    found = model.logits_through(fork, canvas, refresh, refresh)
    expected = []
    for row, origin in enumerate(index.tolist()):
        cache = model.open_cache(1, LENGTH)
        model.logits_through(cache, ids(0)[origin, None], everything(ids(0)[:1]), where[:1])
        expected.append(model.logits_through(cache, canvas[row, None], refresh[row, None], refresh[row, None]))
    assert_same(found, torch.cat(expected))
    definition = LastVisit(model)
    definition.logits(ids(0), everything(ids(0)), where, None)
    later = some(3, 0.4)
    assert_same(model.logits_through(source, ids(2), later, later), definition.logits(ids(2), later, later, None))


def test_an_empty_cache_can_be_selected_from() -> None:
    model = make()
    cache = model.open_cache(3, LENGTH).select(torch.tensor([1]))
    canvas = ids(0, rows=1)
    with torch.no_grad():
        expected = model.logits_at(canvas, everything(canvas))
    assert_same(model.logits_through(cache, canvas, everything(canvas), everything(canvas)), expected)


def test_a_shift_runs_the_columns_that_answer() -> None:
    """What answers for column i stands at i - 1: it is run too, from the canvas as it is now, and kept."""
    model, definition = make("shifted"), LastVisit(make("shifted"))
    cache = model.open_cache(1, LENGTH)
    attend = (torch.arange(LENGTH) >= 2)[None]
    model.logits_through(cache, ids(0, rows=1), everything(ids(0, rows=1)), attend, attend)
    definition.logits(ids(0, rows=1), everything(ids(0, rows=1)), attend, attend)
    refresh = torch.zeros(1, LENGTH, dtype=torch.bool)
    refresh[0, [2, 6, 7, 9]] = True  # the first token, before which nothing stands; two neighbours; another
    where = refresh.clone()
    where[0, 7] = False
    run = refresh.clone()
    run[0, [5, 8]] = True
    found = model.logits_through(cache, ids(1, rows=1), refresh, where, attend)
    assert_same(found, definition.logits(ids(1, rows=1), run, where, attend))


def blocks_of(attend: Tensor) -> Tensor:
    return ((attend.cumsum(1) - 1) // 4).masked_fill(~attend, -1)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_decoding_by_blocks_is_exact(implementation: str, fused: bool) -> None:
    """Prompts of 8, 5 and 3 tokens, so that blocks of 4 start inside prompts and at other columns in every row.

    A finished block is refreshed with its last tokens, by a forward of its own or along with the next block's first.
    """
    model = make("blocks", implementation)
    length, attend, tokens = 20, padded(20), ids(0, length=20)
    block = blocks_of(attend)
    canvas = tokens.masked_fill(torch.arange(20) >= 8, model.spec.mask_id)
    current = block[:, 8:9]
    cache, refresh_also = model.open_cache(3, length), block < current
    while (canvas == model.spec.mask_id).any():
        for share in (0.5, 1.0):
            here = block == current
            where = here & (canvas == model.spec.mask_id)
            found = model.logits_through(cache, canvas, here | refresh_also, where, attend)
            with torch.no_grad():
                whole = model.logits_at(canvas, where, attend)
            # Transformers' eager attention takes its softmax in float32, whatever the weights are in.
            rounding = 1e-10 if implementation == "sdpa" else 1e-6
            torch.testing.assert_close(found, whole, atol=rounding, rtol=1e-8)
            canvas = torch.where(where & some(int(current[0]), share, length=length), tokens, canvas)
            refresh_also = torch.zeros_like(here)
        if fused:
            refresh_also = here
        else:
            model.logits_through(cache, canvas, here, torch.zeros_like(here), attend)
        current = current + 1


@pytest.mark.parametrize("family", [tiny_llada, tiny_dream, tiny_llada_moe, tiny_llada2, tiny_sdar])
def test_every_family(family: Callable[..., DiffusionModel]) -> None:
    """In the families' own precision: grouped experts know no float64."""
    model, attend, nothing = far_from_uniform(family(seed=1)), padded(), torch.zeros(3, LENGTH, dtype=torch.bool)
    cache, older, canvas = model.open_cache(3, LENGTH), ids(0), ids(1)
    model.logits_through(cache, older, everything(older), nothing, attend)
    first, rest = attend & (blocks_of(attend) == 0), attend & (blocks_of(attend) > 0)
    if model.spec.block_size is None:
        first, rest = attend, attend & some(2, 0.5)  # unchanged since: what is left out is not stale
    model.logits_through(cache, canvas, first, nothing, attend)
    found = model.logits_through(cache, canvas, rest, rest, attend)
    torch.testing.assert_close(found, model.logits_at(canvas, rest, attend), atol=1e-5, rtol=0)


def test_a_block_that_was_kept_before_its_last_token_is_not_exact() -> None:
    model = make("blocks")
    canvas, nothing = ids(0, length=8), torch.zeros(3, 8, dtype=torch.bool)
    first = nothing.clone()
    first[:, :4] = True
    cache = model.open_cache(3, 8)
    model.logits_through(cache, torch.where(first, model.spec.mask_id, canvas), first, nothing)
    found = model.logits_through(cache, canvas, ~first, ~first)
    with torch.no_grad():
        assert_differ(found, model.logits_at(canvas, ~first))


def test_a_step_computes_and_reads_no_more_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of the refreshed columns, keys up to the last visible one and in place, logits of the rows asked for."""
    model = make("blocks", kv_heads=4)
    canvas, nothing = ids(0, length=16), torch.zeros(3, 16, dtype=torch.bool)
    cache = model.open_cache(3, 16)
    first, second = nothing.clone(), nothing.clone()
    first[:, :4], second[:, 4:8] = True, True
    model.logits_through(cache, canvas, first, nothing)
    kept = {keys.data_ptr() for keys, _ in cache.layers}
    queries: list[int] = []
    keys: list[int] = []
    logits: list[int] = []
    attention, linear = torch.nn.functional.scaled_dot_product_attention, torch.nn.functional.linear

    def watched_attention(query: Tensor, key: Tensor, *rest: object, **named: object) -> Tensor:
        assert key.data_ptr() in kept and named["attn_mask"] is None
        queries.append(query.shape[2])
        keys.append(key.shape[2])
        return attention(query, key, *rest, **named)

    def watched_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.shape[0] == model.config.vocab_size:
            logits.append(hidden.numel() // hidden.shape[-1])
        return linear(hidden, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched_attention)
    monkeypatch.setattr(torch.nn.functional, "linear", watched_linear)
    where = second & some(0, 0.5, length=16)
    model.logits_through(cache, canvas, second, where)
    assert queries == [4, 4] and keys == [8, 8] and logits == [int(where.sum())]
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    model.logits_at(canvas, where)
    assert logits[1:] == [int(where.sum())]


def test_a_column_that_was_never_computed_is_not_looked_at() -> None:
    model, canvas = make(), ids(0)
    cache = model.open_cache(3, LENGTH)
    part = everything(canvas)
    part[1, 6:8] = False
    with pytest.raises(ModelContractError, match=r"row 1, column 6 .* never computed"):
        model.logits_through(cache, canvas, part, part)
    attend = part.clone()
    model.logits_through(cache, canvas, part, part, attend)  # nobody may look there: nothing is missing
    attend[1, 7] = True
    with pytest.raises(ModelContractError, match=r"row 1, column 7 .* never computed"):
        model.logits_through(cache, canvas, part, part, attend)


def test_a_block_needs_the_blocks_before_it_and_no_others() -> None:
    model, canvas = make("blocks"), ids(0)
    cache = model.open_cache(3, LENGTH)
    middle = torch.zeros_like(canvas, dtype=torch.bool)
    middle[:, 4:8] = True
    first = middle.roll(-4, 1)
    first[2, 3] = False
    with pytest.raises(ModelContractError, match=r"row 0, column 0 .* never computed"):
        model.logits_through(cache, canvas, middle, middle)
    with pytest.raises(ModelContractError, match=r"row 2, column 3 .* never computed"):
        model.logits_through(cache, canvas, first | middle, middle)
    first[2, 3] = True
    model.logits_through(cache, canvas, first | middle, middle)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_runs_nothing_needs_nothing(kind: str) -> None:
    model, canvas = make(kind), ids(0)
    cache, where = model.open_cache(3, LENGTH), everything(canvas)
    where[1] = False
    found = model.logits_through(cache, canvas, where, where)
    with torch.no_grad():
        assert_same(found, model.logits_at(canvas, where))
    with pytest.raises(ModelContractError, match=r"row 1, column 0 .* never computed"):
        model.logits_through(cache, canvas, torch.arange(LENGTH).expand_as(canvas) > 0, torch.zeros_like(where))


def test_a_kept_column_may_not_move() -> None:
    """Its key was rotated to the position it had; an attended column more before it makes that another one."""
    model, canvas, attend = make(), ids(0), padded()
    cache = model.open_cache(3, LENGTH)
    model.logits_through(cache, canvas, everything(canvas), attend, attend)
    wider = attend.clone()
    wider[1, 2] = True
    refresh = torch.zeros_like(attend)
    refresh[:, 9] = True
    model.logits_through(cache, canvas, refresh, refresh, attend)
    refresh[1, 2] = True
    with pytest.raises(ModelContractError, match=r"row 1, column 3 .* position 0 and is at position 1"):
        model.logits_through(cache, canvas, refresh, refresh, wider)


def test_what_makes_no_sense_is_refused() -> None:
    model, canvas = make(), ids(0)
    cache, whole = model.open_cache(3, LENGTH), everything(canvas)
    outside = whole.clone()
    outside[2, 4] = False
    with pytest.raises(ModelContractError, match=r"row 2, column 4 is asked for and not refreshed"):
        model.logits_through(cache, canvas, outside, whole)
    with pytest.raises(ModelContractError, match=r"the cache has shape \(2, 11\) and the canvas \(3, 11\)"):
        model.logits_through(model.open_cache(2, LENGTH), canvas, whole, whole)
    with pytest.raises(ModelContractError, match="no attended column"):
        model.logits_through(cache, canvas, ~whole, ~whole)
    with pytest.raises(ModelContractError, match="no attended column"):
        model.logits_through(cache, canvas, ~padded(), ~whole, padded())
    with pytest.raises(ModelContractError, match="600 positions long"):
        long = torch.zeros(1, 600, dtype=torch.int64)
        model.logits_through(model.open_cache(1, 600), long, everything(long), everything(long))


def test_another_kind_of_cache_is_refused() -> None:
    class Other:
        def select(self, index: Tensor) -> Other:
            return self

    canvas = ids(0)
    with pytest.raises(ModelContractError, match="the cache is a Other"):
        make().logits_through(Other(), canvas, everything(canvas), everything(canvas))


def test_networks_that_would_not_use_the_cache_are_refused() -> None:
    canvas = ids(0)
    model = make(implementation="flex_attention")
    with pytest.raises(ModelContractError, match="'flex_attention' takes no mask"):
        model.logits_through(model.open_cache(3, LENGTH), canvas, everything(canvas), everything(canvas))
    model = make()
    model.network.train()
    with pytest.raises(ModelContractError, match="training mode"):
        model.logits_through(model.open_cache(3, LENGTH), canvas, everything(canvas), everything(canvas))
