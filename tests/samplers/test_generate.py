"""The public function: what it returns, what it depends on, what it refuses."""

from __future__ import annotations

import pytest
import torch

from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import DataError, ModelContractError, RecipeError
from dllm_rl.samplers.generate import generate
from tests.samplers.oracle import Table

WAYS = [
    {"sampler": "llada"},
    {"sampler": "llada", "temperature": 1.0},
    {"sampler": "llada", "temperature": 1.0, "remasking": "random"},
    {"sampler": "rl", "temperature": 0.8, "steps": 2, "block_length": 2},
    {"sampler": "rl", "temperature": 1.0, "cfg_scale": 0.7},
]
RAGGED = [[1, 0], [2], [], [0, 0], [1]]


@pytest.mark.parametrize("way", WAYS)
def test_a_row_does_not_depend_on_the_others(way):
    model = Table(longest=6)
    together = generate(model, RAGGED, gen_length=4, sample_ids=[7, 3, 5, 9, 1], **way)
    for row in range(5):
        alone = generate(model, [RAGGED[row]], gen_length=4, sample_ids=[[7, 3, 5, 9, 1][row]], **way)
        assert alone.completions == [together.completions[row]]
        assert alone.reveal_step.tolist() == [together.reveal_step[row].tolist()]
    order = [3, 0, 4, 1, 2]
    shuffled = generate(
        model, [RAGGED[i] for i in order], gen_length=4, sample_ids=[[7, 3, 5, 9, 1][i] for i in order], **way
    )
    assert shuffled.completions == together.select(order).completions
    torch.testing.assert_close(
        shuffled.behaviour_logp, together.select(order).behaviour_logp, rtol=0, atol=1e-12, equal_nan=True
    )


def test_equal_prompts_draw_apart_by_sample_id_and_seed():
    model = Table(longest=5)
    out = generate(model, [[1]] * 50, gen_length=4, temperature=1.0)
    again = generate(model, [[1]] * 50, gen_length=4, temperature=1.0)
    other = generate(model, [[1]] * 50, gen_length=4, temperature=1.0, seed=1)
    assert len(set(map(tuple, out.completions))) > 5
    assert out.completions == again.completions != other.completions
    same = generate(model, [[1]] * 3, gen_length=4, temperature=1.0, sample_ids=[4, 4, 4])
    assert same.completions == [out.completions[4]] * 3


@pytest.mark.parametrize("way", WAYS)
def test_the_log_replays_every_canvas_that_the_model_saw(way):
    model = Table(longest=6)
    out = generate(model, RAGGED, gen_length=4, **way)
    shown = model.seen[::2] if way.get("cfg_scale") else model.seen
    assert len(shown) == out.num_steps
    for step, canvas in enumerate(shown):
        assert torch.equal(out.canvas(step), canvas)
    assert torch.equal(out.canvas(out.num_steps), out.sequences().tokens)
    assert (out.canvas(0)[:, 2:] == model.spec.mask_id).all()
    with pytest.raises(ValueError, match="5 forwards"):
        generate(model, [[1]], gen_length=4).canvas(5)


@pytest.mark.parametrize("way", WAYS[1:])
def test_scoring_the_replayed_canvases_gives_the_recorded_log_probabilities(way):
    """What trajectory losses rely on: the ratio is 1 while the policy is the behaviour policy."""
    model = Table(longest=6)
    out = generate(model, RAGGED, gen_length=4, **way)
    sequences, reveal = out.sequences(), out.reveal_step
    rescored = torch.zeros_like(out.token_behaviour_logp)
    for step in range(1, out.num_steps + 1):
        where = torch.cat([torch.zeros(5, 2, dtype=torch.bool), reveal == step], dim=1)
        rescored += model.score(
            out.canvas(step - 1), sequences.tokens, where, sequences.attend, out.transform, prompt=sequences.prompt
        ).logp
    torch.testing.assert_close(out.token_behaviour_logp, rescored, rtol=0, atol=1e-12)


def test_the_raw_log_probability_is_that_of_the_full_softmax():
    model = Table(longest=4)
    out = generate(model, [[1]], gen_length=3, temperature=0.5, steps=1)
    logits = model.logits(torch.tensor([[1, 3, 3, 3]]))[0, 1:]
    expected = logits.log_softmax(-1)[range(3), out.completions[0]]
    torch.testing.assert_close(out.events.logp, expected)
    torch.testing.assert_close(out.events.conf, expected)


def test_blocks_are_written_one_after_the_other():
    out = generate(Table(longest=5), [[1]] * 9, gen_length=4, block_length=2, steps=4, temperature=1.0)
    assert out.nfe == [4] * 9
    assert out.reveal_step.sort(dim=1).values.tolist() == [[1, 2, 3, 4]] * 9
    assert (out.reveal_step[:, :2] <= 2).all()


def test_steps_with_nothing_left_to_write_are_not_made():
    assert generate(Table(longest=4), [[1]], gen_length=3, steps=7).nfe == [3]


def test_forbidden_ids_are_never_drawn_though_the_model_wants_them():
    model = Table(words=4, longest=4)
    model.spec = model.spec.__class__(mask_id=4, eos_ids=(0,), forbidden_ids=(2,))
    for table in model.tables.values():
        table[..., [2, 4]] += 20.0
    for sampler, temperature in [("llada", 0.0), ("llada", 2.0), ("rl", 0.0), ("rl", 2.0)]:
        out = generate(model, [[1]] * 30, gen_length=3, sampler=sampler, temperature=temperature)
        assert {token for row in out.completions for token in row} <= {0, 1, 3}
        assert out.transform == Transform(temperature, 0.0, (2, 4))


def wants_to_end(eos_ids: tuple[int, ...] = (2,)) -> Table:
    model = Table(words=4, longest=5, eos_ids=eos_ids)
    for table in model.tables.values():
        table[..., 2] += 2.0
    return model


def test_the_end_of_sequence_can_be_forbidden():
    usual = generate(wants_to_end(), [[1]] * 40, gen_length=4, temperature=1.0)
    never = generate(wants_to_end(), [[1]] * 40, gen_length=4, temperature=1.0, logits_eos_inf=True)
    assert usual.finished.double().mean() > 0.9
    assert not never.finished.any()
    several = generate(wants_to_end((0, 2)), [[1]] * 40, gen_length=4, temperature=1.0, logits_eos_inf=True)
    assert not several.finished.any()


@pytest.mark.parametrize(("eot_id", "late"), [(None, {2}), (0, {0, 2})])
def test_ends_are_written_only_where_nothing_else_was_drawn(eot_id, late):
    model = wants_to_end()
    prompts = [[i] for i in range(4)]
    out = generate(model, prompts, gen_length=4, confidence_eos_eot_inf=True, eot_id=eot_id)
    plain = generate(model, prompts, gen_length=4)
    assert out.reveal_step.tolist() != plain.reveal_step.tolist()
    for step in range(out.num_steps):
        canvas = out.canvas(step)
        drawn = model.logits(canvas)[:, 1:, :4].argmax(dim=-1)
        for row, position in (out.reveal_step == step + 1).nonzero().tolist():
            if out.completions[row][position] in late:
                assert set(drawn[row][canvas[row, 1:] == model.spec.mask_id].tolist()) <= late


def test_a_prompt_is_taken_exactly_as_given():
    """The mask id in a prompt is a token like any other, not a hole to be filled."""
    model = Table(longest=5)
    out = generate(model, [[3, 1]], gen_length=3)
    assert out.canvas(out.num_steps)[0, :2].tolist() == [3, 1]
    assert len(out.completions[0]) == 3 and 3 not in out.completions[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "lada"}, "did you mean 'llada'"),
        ({"sampler": "llada", "remaking": "random"}, "did you mean 'remasking'"),
        ({"sampler": "rl", "remasking": "random"}, "takes no options"),
        ({"remasking": "rnd"}, "expected 'low_confidence' or 'random'"),
        ({"steps": 3, "block_length": 2}, "steps 3 cannot be shared equally by 2 blocks"),
        ({"block_length": 3}, "block_length 3 does not divide gen_length 4"),
        ({"steps": 0}, "steps is 0"),
        ({"gen_length": 0}, "gen_length is 0"),
        ({"block_length": -2}, "block_length is -2"),
        ({"logits_eos_inf": "no"}, "logits_eos_inf is 'no'; expected bool"),
        ({"eot_id": "7"}, "eot_id is '7'; expected int | None"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"cfg_scale": -1.0}, "cfg_scale is -1.0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(RecipeError, match=message):
        generate(Table(), [[1]], **{"gen_length": 4, **arguments})


def test_wrong_prompts_are_refused():
    model = Table()
    model.max_positions = 5
    with pytest.raises(DataError, match=r"prompt 1 has 2 tokens, which with gen_length 4 makes 6 .* the model has 5"):
        generate(model, [[1], [1, 1]], gen_length=4)
    with pytest.raises(DataError, match="no prompts"):
        generate(model, [], gen_length=4)
    with pytest.raises(DataError, match="2 sample_ids for 1 prompts"):
        generate(model, [[1]], gen_length=4, sample_ids=[1, 2])


def test_a_model_that_gives_nan_is_refused():
    model = Table()
    model.tables[2][:] = float("nan")
    with pytest.raises(ModelContractError, match="NaN logits at forward 1"):
        generate(model, [[1]], gen_length=1)


def test_no_graph_is_kept():
    model = Table(longest=4)
    for table in model.tables.values():
        table.requires_grad_(True)
    out = generate(model, [[1]], gen_length=3, temperature=1.0)
    assert not out.behaviour_logp.requires_grad
