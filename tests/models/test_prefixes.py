"""Beginnings that rows of a block-causal model share, run once. Against one row at a time, where nothing is shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from dllm_rl.models import prefixes
from dllm_rl.models.attention import AttentionSpec
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.few import Few
from dllm_rl.models.policy_head import attach_head
from dllm_rl.models.prefixes import Prefixes
from dllm_rl.toys.families import tiny_llada2, tiny_sdar
from dllm_rl.toys.model import tiny_llada

BLOCK = 4
Batch = dict[str, Tensor]


def a_batch(seed: int, mask: int) -> Batch:
    """Up to six rows after two prompts, left-padded: the same text hidden otherwise, from some place on, and cut."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    rows, longest, most = draw(2, 6), draw(1, 30), draw(1, 14)
    prompts = [torch.randint(5, 90, (size,), generator=generator) for size in (longest, draw(0, longest))]
    text = torch.randint(5, 90, (most,), generator=generator)
    canvas = torch.full((rows, longest + most), 3)
    attend = torch.zeros_like(canvas, dtype=torch.bool)
    where = torch.zeros_like(attend)
    for row in range(rows):
        prompt, length = prompts[draw(0, 1)], draw(1, most)
        start, end = longest - len(prompt), longest + length
        hidden = (torch.rand(length, generator=generator) < 0.5) & (torch.arange(length) >= draw(0, length))
        canvas[row, start:end] = torch.cat([prompt, text[:length].masked_fill(hidden, mask)])
        attend[row, start:end] = True
        where[row, start:end] = torch.rand(end - start, generator=generator) < 0.4
    tokens = torch.randint(5, 90, canvas.shape, generator=generator)
    return {"canvas": canvas, "tokens": tokens, "where": where, "attend": attend}


def a_group(rows: int = 4, prompt: int = 24, completion: int = 8) -> Batch:
    """Completions of one prompt, half hidden."""
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randint(5, 90, (rows, prompt + completion), generator=generator)
    canvas[:, :prompt] = canvas[0, :prompt].clone()
    where = torch.zeros_like(canvas, dtype=torch.bool)
    where[:, prompt:] = torch.rand(rows, completion, generator=generator) < 0.5
    shown = canvas.masked_fill(where, 90)
    return {"canvas": shown, "tokens": canvas, "where": where, "attend": torch.ones_like(where)}


def scored(model: DiffusionModel, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities and entropies, and the gradients of a sum of them."""
    model.network.zero_grad()
    scores = model.score(**batch, entropy=True)
    assert scores.entropy is not None
    value = torch.cat([scores.logp, scores.entropy], dim=1)
    weight = torch.linspace(-1, 2, batch["where"].shape[1]) + torch.arange(len(value))[:, None]
    (value * weight.repeat(1, 2)).sum().backward()
    return value.detach(), [p.grad.clone() for p in model.network.parameters() if p.grad is not None]


def scored_apart(model: DiffusionModel, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """The same of one row at a time."""
    model.network.zero_grad()
    weight = torch.linspace(-1, 2, batch["where"].shape[1])
    values = []
    for row in range(len(batch["canvas"])):
        scores = model.score(**{name: part[row : row + 1] for name, part in batch.items()}, entropy=True)
        assert scores.entropy is not None
        values.append(torch.cat([scores.logp, scores.entropy], dim=1))
        (values[-1] * (weight + row).repeat(2)).sum().backward()
    gradients = [p.grad.clone() for p in model.network.parameters() if p.grad is not None]
    return torch.cat(values).detach(), gradients


def forwards(model: DiffusionModel, batch: Batch) -> list[tuple[int, ...]]:
    """Shapes of what the network runs."""
    shapes: list[tuple[int, ...]] = []
    hook = model.network.model.register_forward_pre_hook(
        lambda module, args, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    with torch.no_grad():
        model.score(**batch)
    hook.remove()
    return shapes


def in_float64(model: DiffusionModel) -> DiffusionModel:
    """All of it, the norms too, which are float32 in every network."""
    model.network.double()
    for module in model.network.modules():
        if type(module).__name__.endswith("RMSNorm"):
            precise = nn.RMSNorm(module.weight.shape, module.variance_epsilon)
            precise.weight = module.weight
            module.forward = precise.forward
    return model


@pytest.fixture
def whatever_it_gains(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(prefixes, "LEAST_GAIN", 0.0)
    yield


@pytest.mark.usefixtures("whatever_it_gains")
@pytest.mark.parametrize(("tiny", "bound"), [(tiny_sdar, 1e-10), (tiny_llada2, 1e-6)])
def test_scores_and_gradients_are_those_of_one_row_at_a_time(tiny: Callable[..., DiffusionModel], bound: float) -> None:
    """LLaDA2's router is float32 whatever the rest is."""
    model = in_float64(tiny(block_size=BLOCK))
    if tiny is tiny_llada2:
        model.network.set_experts_implementation("eager")
    fewer = 0
    for seed in range(12):
        batch = a_batch(seed, model.spec.mask_id)
        (values, gradients), (wanted, expected) = scored(model, batch), scored_apart(model, batch)
        torch.testing.assert_close(values, wanted, rtol=0, atol=bound)
        for ours, theirs in zip(gradients, expected, strict=True):
            assert (ours - theirs).norm() <= bound * theirs.norm() + 1e-15, seed
        used = Few.of(batch["canvas"], batch["where"], batch["attend"], None, None)
        fewer += forwards(model, batch)[0] != tuple(used.canvas.shape)
    assert fewer >= 8, "in most of them something is shared"


def test_a_prompt_is_run_once_for_its_group_and_folded_to_the_width_of_what_is_left() -> None:
    assert forwards(tiny_sdar(block_size=BLOCK), a_group()) == [(4 + 3, 8)]
    unaligned = a_group(prompt=26)
    assert forwards(tiny_sdar(block_size=BLOCK), unaligned) == [(4 + 3, 10)], "the last two tokens see what follows"


def test_no_row_is_narrower_than_a_block_and_a_long_prompt_is_folded_less_often() -> None:
    assert forwards(tiny_sdar(block_size=BLOCK), a_group(completion=2)) == [(3 + 6, 4)], "two rows are the same"
    assert forwards(tiny_sdar(block_size=BLOCK), a_group(prompt=200, completion=4)) == [(4 + 13, 16)]


@pytest.mark.usefixtures("whatever_it_gains")
def test_a_row_that_goes_on_with_the_id_of_padding_goes_on() -> None:
    model, batch = in_float64(tiny_sdar(block_size=BLOCK)), a_group(rows=2)
    batch["canvas"][0, 24:], batch["attend"][1, 24:], batch["where"][1, 24:] = 0, False, False
    batch["where"][:, 20:24] = True
    torch.testing.assert_close(scored(model, batch)[0], scored_apart(model, batch)[0], rtol=0, atol=1e-10)


def test_views_share_the_blocks_before_the_first_that_differs() -> None:
    batch = a_group(prompt=8, completion=24)
    batch["canvas"] = batch["tokens"][:1].repeat(4, 1)
    for row in range(4):
        batch["canvas"][row, 20 + 3 * row :] = 90
    assert forwards(tiny_sdar(block_size=BLOCK), batch) == [(4 + 2, 12)]


@pytest.mark.usefixtures("whatever_it_gains")
def test_two_groups_and_a_row_by_itself_in_one_forward() -> None:
    model = in_float64(tiny_sdar(block_size=BLOCK))
    batch = a_group(rows=7)
    batch["canvas"][3:6, :24] = batch["canvas"][3:6, :24].flip(1)
    batch["canvas"][6, :24] = 7
    assert forwards(model, batch) == [(7 + 3 + 3 + 3, 8)]
    values, gradients = scored(model, batch)
    wanted, expected = scored_apart(model, batch)
    torch.testing.assert_close(values, wanted, rtol=0, atol=1e-10)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm()


def test_rows_stay_whole_where_too_little_is_shared() -> None:
    model = tiny_sdar(block_size=BLOCK)
    assert forwards(model, a_group(prompt=4, completion=32)) == [(4, 36)]
    assert forwards(model, a_group(prompt=12, completion=32)) == [(4, 44)], "it would be a tenth less"
    assert forwards(model, a_group(rows=1)) == [(1, 32)]


def test_rows_stay_whole_where_they_are_more_than_runs_of_tokens_to_score() -> None:
    few = {name: part for name, part in a_group().items() if name != "tokens"}

    def cut(**other: Tensor | AttentionSpec | None) -> Prefixes | None:
        return Prefixes.of(Few.of(**{**few, "blind": None, "open": None, **other}), BLOCK)

    assert cut() is not None and cut(attend=None) is not None
    assert cut(blind=few["canvas"] + 1) is None
    assert cut(open=few["where"]) is None
    assert cut(attend=AttentionSpec("block_causal", BLOCK)) is None
    assert cut(attend=torch.ones(4, 32, 32, dtype=torch.bool)) is None
    hole, end = few["attend"].clone(), few["attend"].clone()
    hole[2, 5], end[2, 31] = False, False
    assert cut(attend=hole) is None
    asked = few["where"].clone()
    asked[2, 31] = False
    assert cut(attend=end, where=asked) is not None
    asked[2, 31] = True
    assert cut(attend=end, where=asked) is None, "a position that nobody sees is asked about"


def test_a_bidirectional_model_shares_nothing() -> None:
    assert forwards(tiny_llada(), a_group()) == [(4, 32)]


def test_planned_and_guided_rows_are_scored_as_before() -> None:
    model = tiny_sdar(block_size=BLOCK)
    attach_head(model.network, {"type": "planner"})
    batch = a_group()
    prompt = torch.arange(32).expand(4, -1) < 24
    for more in ({"open": batch["where"]}, {"prompt": prompt, "cfg_scale": torch.ones(4).double()}):
        together = model.score(**batch, **more)
        for row in range(4):
            one = {name: part[row : row + 1] for name, part in (batch | more).items()}
            torch.testing.assert_close(together.logp[row : row + 1], model.score(**one).logp, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    model, batch = tiny_sdar(block_size=BLOCK), a_group()
    values, expected = scored(model, batch)
    model.network.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.network.train()
    if reentrant:
        model.network.enable_input_require_grads()
    again, gradients = scored(model, batch)
    torch.testing.assert_close(again, values)
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-6)


def test_written_out_attention_gives_the_same() -> None:
    model, batch = tiny_sdar(block_size=BLOCK), a_group()
    expected, _ = scored(model, batch)
    model.network.set_attn_implementation("eager")
    assert forwards(model, batch) == [(7, 8)]
    torch.testing.assert_close(scored(model, batch)[0], expected, rtol=1e-5, atol=1e-5)
