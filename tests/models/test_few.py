"""What a batch need not compute: columns of padding, and rows that are the same. Against one row at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dllm_rl.diffusion.transform import Transform
from dllm_rl.models.attention import AttentionSpec
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.few import Few
from dllm_rl.models.policy_head import attach_head
from dllm_rl.toys.families import tiny_dream, tiny_sdar
from dllm_rl.toys.model import tiny_llada

N = 9
KINDS = ("plain", "guided", "planned")


def a_batch(mask: int) -> dict[str, Tensor]:
    """Rows 0, 1 and 3 show the same and are asked differently; columns 0 and 8 are padding in all, 1 in most."""
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randint(5, 90, (5, N), generator=generator)
    attend = torch.zeros(5, N, dtype=torch.bool)
    attend[:, 2:8] = True
    attend[4, 1], attend[2, 7] = True, False
    canvas[:, 4:8] = torch.where(torch.rand(5, 4, generator=generator) < 0.5, mask, canvas[:, 4:8])
    canvas[[1, 3]] = canvas[0].clone()
    where = torch.zeros_like(attend)
    where[:, 4:7] = torch.rand(5, 3, generator=generator) < 0.7
    where[3] = where[0]
    tokens = torch.randint(5, 90, (5, N), generator=generator)
    prompt = attend & (torch.arange(N) < 4)
    return {"canvas": canvas, "tokens": tokens, "where": where, "attend": attend, "prompt": prompt}


def parts_of(model: DiffusionModel, rows: list[int], kind: str) -> Tensor:
    batch = {name: part[rows] for name, part in a_batch(model.spec.mask_id).items()}
    guided = {"cfg_scale": torch.tensor([0.5, 1.0, 0.0, 2.0, 0.5])[rows].double()} if kind == "guided" else {}
    opened = {"open": batch["where"] & (torch.arange(N) < 6)} if kind == "planned" else {}
    transform = Transform(temperature=0.8, forbidden_ids=(1, 2))
    scored = [model.score(**batch, entropy=each, transform=transform, **guided, **opened) for each in (False, True)]
    return torch.cat([part for scores in scored for part in scores if part is not None], dim=1)


def gradients(model: DiffusionModel, value: Tensor) -> list[Tensor]:
    model.network.zero_grad()
    (value * torch.linspace(-1, 2, value.numel()).reshape(value.shape)).sum().backward()
    return [torch.zeros(1) if p.grad is None else p.grad.clone() for p in model.network.parameters()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tiny", [tiny_llada, tiny_dream, tiny_sdar])
def test_scores_and_gradients_are_those_of_one_row_at_a_time(tiny: Callable[[], DiffusionModel], kind: str) -> None:
    model = tiny()
    model.network.double()
    if kind == "planned":
        attach_head(model.network, {"type": "planner"})
        torch.nn.init.normal_(model.network.planner.out.weight, generator=torch.Generator().manual_seed(0))
        model.network.double()
    together = parts_of(model, list(range(5)), kind)
    apart = torch.cat([parts_of(model, [row], kind) for row in range(5)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5 if kind == "planned" else 1e-10)
    for ours, wanted in zip(gradients(model, together), gradients(model, apart), strict=True):
        assert (ours - wanted).norm() <= 1e-6 * wanted.norm()  # norms are float32 in every network


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_sees_each_canvas_once_and_no_column_that_is_padding_in_all(kind: str) -> None:
    model = tiny_llada()
    attach_head(model.network, {"type": "planner"})
    seen: list[tuple[int, ...]] = []
    model.network.model.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    parts_of(model, list(range(5)), kind)
    assert set(seen) == {(4, 7) if kind == "planned" else (3, 7)}, "rows 0 and 1 differ in what is open"


def test_the_head_sees_each_hidden_state_once_however_many_tokens_are_asked_of_it() -> None:
    model, rows = tiny_llada(), []
    model.network.lm_head.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    canvas = torch.tensor([[3, 4, 90], [3, 4, 90], [5, 4, 90]])
    tokens = torch.tensor([[3, 4, 7], [3, 4, 8], [5, 4, 9]])
    where = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 1, 0]]).bool()
    logp = model.token_logp(canvas, tokens, where)
    assert rows == [3], "the second position of two canvases, the third of one"
    expected = model.logits(canvas).log_softmax(-1).gather(2, tokens[..., None])[..., 0] * where
    torch.testing.assert_close(logp, expected, rtol=0, atol=1e-5)


def test_rows_begin_where_they_begin_so_that_none_pays_for_the_longest_prompt_and_the_longest_completion() -> None:
    attend = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0]]).bool()
    canvas = torch.arange(18).reshape(3, 6)
    few = Few.of(canvas, attend & (canvas % 2 == 0), attend, None, None)
    assert few.canvas.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11], [15, 16, 0, 0]]
    assert few.attend.tolist() == [[True] * 4, [True] * 4, [True, True, False, False]]
    assert few.where.nonzero().tolist() == [[0, 0], [0, 2], [1, 0], [1, 2], [2, 1]]
    back = few.everywhere(few.canvas.float())
    assert torch.equal(back, canvas * attend), "and every value finds its way back"


def test_rows_differ_by_what_is_seen_of_them_too() -> None:
    canvas, where = torch.full((3, 4), 7), torch.ones(3, 4, dtype=torch.bool)
    attend = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    few = Few.of(canvas, where, attend, None, None)
    assert len(few.canvas) == 2 and few.place[0] == few.place[2] != few.place[1]
    blind = torch.tensor([[7] * 4, [7] * 4, [6] * 4])
    assert len(Few.of(canvas, where, attend, blind, None).canvas) == 3
    assert len(Few.of(canvas, where, None, None, None).canvas) == 1


def test_rows_that_all_differ_stay_in_their_order_and_patterns_as_they_are() -> None:
    canvas, where = torch.tensor([[3, 1], [2, 2], [1, 5]]), torch.ones(3, 2, dtype=torch.bool)
    assert torch.equal(Few.of(canvas, where, None, None, None).canvas, canvas)
    same = torch.full_like(canvas, 4)
    for attend in (AttentionSpec("block_causal", 1), torch.ones(3, 2, 2, dtype=torch.bool)):
        few = Few.of(same, where, attend, None, None)
        assert few.canvas is same and few.attend is attend and few.place.tolist() == [0, 1, 2]


def test_a_position_that_is_asked_about_is_kept_though_nobody_sees_it() -> None:
    attend = torch.tensor([[0, 0, 1, 1, 0, 0]]).bool()
    where = torch.tensor([[0, 1, 0, 0, 0, 0]]).bool()
    assert Few.of(torch.arange(6)[None], where, attend, None, None).canvas.tolist() == [[1, 2, 3]]
    nothing = torch.zeros_like(attend)
    assert Few.of(torch.arange(6)[None], nothing, nothing, None, None).canvas.tolist() == [[0]]
