"""Attention patterns: rules enumerated, implementations compared, padding and streams."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dllm_rl.errors import ModelContractError
from dllm_rl.models import AttentionSpec, DiffusionModel
from dllm_rl.models.attention import attention_mask, position_ids, seen_positions
from dllm_rl.toys.model import tiny_llada


@pytest.fixture
def model() -> DiffusionModel:
    model = tiny_llada(seed=2, kv_heads=2)
    with torch.no_grad():
        model.network.model.embed_tokens.weight.mul_(30)
    return model


def ids(length: int, rows: int = 2) -> Tensor:
    return torch.randint(0, 90, (rows, length), generator=torch.Generator().manual_seed(length))


def use(model: DiffusionModel, implementation: str) -> DiffusionModel:
    model.network.set_attn_implementation(implementation)
    return model


def patterns(length: int) -> dict[str, Tensor | AttentionSpec | None]:
    pads = torch.arange(length)[None] >= torch.tensor([[2], [0]])
    causal = torch.ones(2, length, length, dtype=torch.bool).tril()
    return {
        "full": None,
        "padded": pads,
        "pairs": causal,
        "blocks": AttentionSpec("block_causal", 3),
        "padded blocks": AttentionSpec("block_causal", 3, pads),
        "streams": AttentionSpec("two_stream", 2),
    }


@pytest.mark.parametrize("name", patterns(8))
def test_eager_and_sdpa_agree(model: DiffusionModel, name: str) -> None:
    attend = patterns(8)[name]
    with torch.no_grad():
        sdpa = use(model, "sdpa").logits(ids(8), attend)
        eager = use(model, "eager").logits(ids(8), attend)
    torch.testing.assert_close(sdpa, eager, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", patterns(8))
def test_flex_and_sdpa_agree(model: DiffusionModel, name: str) -> None:
    attend = patterns(8)[name]
    if isinstance(attend, AttentionSpec) and attend.attend is not None:
        attend = replace(attend, attend=attend.attend.cuda())
    attend = attend.cuda() if isinstance(attend, Tensor) else attend
    model.network.cuda()
    with torch.no_grad():
        sdpa = use(model, "sdpa").logits(ids(8).cuda(), attend)
        flex = use(model, "flex_attention").logits(ids(8).cuda(), attend)
    torch.testing.assert_close(flex, sdpa, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["pairs", "blocks", "padded blocks", "streams"])
def test_flex_is_told_the_same_rule_as_sdpa(model: DiffusionModel, name: str) -> None:
    attend = patterns(8)[name]
    seen = seen_positions(attend, ids(8).shape, torch.device("cpu"))
    positions = position_ids(attend, seen)
    dense = attention_mask(attend, seen, positions, use(model, "sdpa").network)
    rule = attention_mask(attend, seen, positions, use(model, "flex_attention").network).mask_mod
    b, q, k = torch.meshgrid(torch.arange(2), torch.arange(8), torch.arange(8), indexing="ij")
    assert torch.equal(rule(b, torch.zeros_like(b), q, k), dense[:, 0])


def test_flex_is_refused_on_a_cpu(model: DiffusionModel) -> None:
    with pytest.raises(ModelContractError, match="'flex_attention' on a CPU"):
        use(model, "flex_attention").logits(ids(8))


def sees(model: DiffusionModel, attend: Tensor | AttentionSpec | None, length: int) -> Tensor:
    """Who is influenced by whom, found by gradients of a network of one layer: Bool[query, key]."""
    embedded: list[Tensor] = []

    def keep(_: object, __: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_(True))
        return embedded[-1]

    handle = model.network.model.embed_tokens.register_forward_hook(keep)
    logits = model.logits(ids(length, rows=1), attend)
    handle.remove()
    rows = [torch.autograd.grad(logits[0, q].square().sum(), embedded[0], retain_graph=True)[0] for q in range(length)]
    return torch.stack(rows)[:, 0].abs().sum(-1) > 0


def test_block_causal_by_enumeration() -> None:
    model = tiny_llada(layers=1)
    expected = torch.tensor([[k // 3 <= q // 3 for k in range(8)] for q in range(8)])
    assert torch.equal(sees(model, AttentionSpec("block_causal", 3), 8), expected)


def test_blocks_start_at_the_first_attended_position() -> None:
    attend = torch.tensor([[False, False, True, True, True, True, True, True]])
    found = sees(tiny_llada(layers=1), AttentionSpec("block_causal", 3, attend), 8)[2:, 2:]
    assert torch.equal(found, torch.tensor([[k // 3 <= q // 3 for k in range(6)] for q in range(6)]))


def test_two_streams_by_enumeration() -> None:
    """The three parts of the published training mask: noisy on noisy, noisy on clean, clean on clean."""

    def rule(q: int, k: int) -> bool:
        query, key = q % 4 // 2, k % 4 // 2
        if q < 4:
            return key == query if k < 4 else key < query
        return k >= 4 and key <= query

    expected = torch.tensor([[rule(q, k) for k in range(8)] for q in range(8)])
    assert torch.equal(sees(tiny_llada(layers=1), AttentionSpec("two_stream", 2), 8), expected)


def test_two_streams_give_what_block_by_block_decoding_sees(model: DiffusionModel) -> None:
    """A noisy block after clean blocks, one forward each, equals one forward of both streams."""
    clean = ids(6)
    noisy = torch.full_like(clean, model.spec.mask_id)
    with torch.no_grad():
        together = model.logits(torch.cat([noisy, clean], 1), AttentionSpec("two_stream", 2))
        for block in range(3):
            canvas = torch.cat([clean[:, : 2 * block], noisy[:, :2]], 1)
            alone = model.logits(canvas, AttentionSpec("block_causal", 2))
            torch.testing.assert_close(together[:, 2 * block : 2 * block + 2], alone[:, -2:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_content_of_padding_is_never_seen(model: DiffusionModel, implementation: str) -> None:
    attend = torch.arange(8)[None].expand(2, 8) >= 3
    first = ids(8)
    second = torch.where(attend, first, 7)
    use(model, implementation)
    for pattern in (attend, AttentionSpec("block_causal", 2, attend)):
        with torch.no_grad():
            a, b = model.logits(first, pattern), model.logits(second, pattern)
        torch.testing.assert_close(a[:, 3:], b[:, 3:], atol=0, rtol=0)


def test_every_position_sees_every_other() -> None:
    assert sees(tiny_llada(layers=1), None, 6).all()


def test_patterns_that_make_no_sense_are_refused(model: DiffusionModel) -> None:
    with pytest.raises(ValueError, match="block_size"):
        AttentionSpec("block_causal", 0)
    with pytest.raises(ModelContractError, match="noisy and a clean half"):
        model.logits(ids(7), AttentionSpec("two_stream", 2))


def test_a_two_stream_canvas_may_be_twice_as_long() -> None:
    model = tiny_llada(max_positions=8)
    model.logits(ids(16), AttentionSpec("two_stream", 2))
    with pytest.raises(ModelContractError, match=r"18 positions long .* 16"):
        model.logits(ids(18), AttentionSpec("two_stream", 2))


def test_a_model_with_a_block_size_is_block_causal_by_itself(model: DiffusionModel) -> None:
    canvas, attend = ids(8), torch.arange(8)[None] >= torch.tensor([[2], [0]])
    where = attend & (torch.arange(8) % 2 == 0)
    blocks = DiffusionModel(model.network, replace(model.spec, block_size=3))
    with torch.no_grad():
        for given in (None, attend):
            pattern = AttentionSpec("block_causal", 3, given)
            assert torch.equal(blocks.logits(canvas, given), model.logits(canvas, pattern))
            assert torch.equal(blocks.logits_at(canvas, where, given), model.logits_at(canvas, where, pattern))
            found = blocks.score(canvas, canvas, where, given).logp
            assert torch.equal(found, model.score(canvas, canvas, where, pattern).logp)
        everywhere = torch.ones(2, 8, 8, dtype=torch.bool)
        for explicit in (everywhere, AttentionSpec("block_causal", 2), AttentionSpec("two_stream", 2)):
            assert torch.equal(blocks.logits(canvas, explicit), model.logits(canvas, explicit))
    assert not torch.allclose(blocks.logits(canvas), model.logits(canvas), atol=1e-3)
