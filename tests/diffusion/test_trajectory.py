"""A log with remasks and edits, written by hand, and everything derived from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dllm_rl.diffusion.trajectory import Events, Op, Predictions, Trajectory
from dllm_rl.diffusion.transform import Transform

MASK, EOS = 9, 8
LOG = [  # row, step, position, op, token, logq
    (0, 1, 1, Op.WRITE, 5, -0.5),
    (0, 1, 2, Op.WRITE, EOS, -1.0),
    (0, 2, 0, Op.WRITE, 4, -0.25),
    (0, 2, 1, Op.REMASK, MASK, 0.0),
    (0, 3, 1, Op.WRITE, 6, -2.0),
    (1, 1, 0, Op.WRITE, 1, -0.125),
    (1, 1, 1, Op.WRITE, 2, -0.375),
    (1, 2, 2, Op.WRITE, 3, -4.0),
    (1, 2, 0, Op.EDIT, 7, -8.0),
]


@pytest.fixture
def trajectory() -> Trajectory:
    columns = [torch.tensor(column) for column in zip(*LOG, strict=True)]
    logq = columns[5].to(torch.float64)
    return Trajectory(
        prompts=[[1], [2, 3]],
        gen_length=3,
        events=Events(*columns[:5], logq, logq - 1, logq + 1),
        selection_logp=torch.tensor([[-1.0, 0.0, -0.5], [0.0, -3.0, 0.0]], dtype=torch.float64),
        nfe=[3, 2],
        keys=torch.tensor([10, 11]),
        transform=Transform(0.5),
        exactness="exact",
        mask_id=MASK,
        eos_ids=(EOS,),
        update=4,
    )


def test_every_canvas_is_replayed(trajectory):
    assert trajectory.canvas(0).tolist() == [[EOS, 1, MASK, MASK, MASK], [2, 3, MASK, MASK, MASK]]
    assert trajectory.canvas(1).tolist() == [[EOS, 1, MASK, 5, EOS], [2, 3, 1, 2, MASK]]
    assert trajectory.canvas(2).tolist() == [[EOS, 1, 4, MASK, EOS], [2, 3, 7, 2, 3]]
    assert trajectory.canvas(3).tolist() == [[EOS, 1, 4, 6, EOS], [2, 3, 7, 2, 3]]
    for steps in (-1, 4):
        with pytest.raises(ValueError, match="expected 0 to 3"):
            trajectory.canvas(steps)


def test_dense_fields_are_those_of_the_last_event(trajectory):
    assert trajectory.completions == [[4, 6, EOS], [7, 2, 3]]
    assert trajectory.reveal_step.tolist() == [[2, 3, 1], [2, 1, 2]]
    assert trajectory.token_behaviour_logp.tolist() == [[0, 0, -0.25, -2.0, -1.0], [0, 0, -8.0, -0.375, -4.0]]
    assert trajectory.finished.tolist() == [True, False]
    assert trajectory.num_steps == 3


def test_a_position_never_written_has_no_reveal_step_and_no_likelihood(trajectory):
    first_forward = trajectory.events.select(torch.tensor([0, 1, 5, 6]))
    begun = replace(trajectory, events=first_forward, selection_logp=trajectory.selection_logp[:, :1])
    assert begun.completions == [[MASK, 5, EOS], [1, 2, MASK]]
    assert begun.reveal_step.tolist() == [[0, 1, 1], [1, 1, 0]]
    assert begun.token_behaviour_logp.tolist() == [[0, 0, 0, -0.5, -1.0], [0, 0, -0.125, -0.375, 0]]


def test_the_codes_of_a_log_are_fixed():
    """A log is a table of integers; one that was stored must read the same later."""
    assert {op.name: op.value for op in Op} == {"WRITE": 0, "REMASK": 1, "EDIT": 2, "FIX": 3}


def test_the_likelihood_counts_overwritten_draws_and_selections(trajectory):
    assert trajectory.behaviour_logp.tolist() == [-3.75 - 1.5, -12.5 - 3.0]


def test_sequences_pad_on_the_left_and_score_up_to_the_first_end(trajectory):
    sequences = trajectory.sequences()
    assert sequences.tokens.tolist() == trajectory.canvas(3).tolist()
    assert sequences.attend.tolist() == [[False, True, True, True, True], [True] * 5]
    assert sequences.completion.tolist() == [[False, False, True, True, True]] * 2
    assert sequences.scored.tolist() == [[False, False, True, True, True]] * 2
    early = trajectory.select([0])
    early.events.token[2] = EOS  # the first position now ends the sequence
    assert early.sequences().scored.tolist() == [[False, True, False, False]]


def test_rows_can_be_taken_apart_and_joined_in_any_order(trajectory):
    none = trajectory.select([])
    assert (none.completions, none.prompt_length, none.behaviour_logp.tolist()) == ([], 0, [])
    parts = [trajectory.select([1]), trajectory.select([0, 1])]
    joined = Trajectory.concatenate(parts)
    assert joined.completions == [[7, 2, 3], [4, 6, EOS], [7, 2, 3]]
    assert joined.prompts == [[2, 3], [1], [2, 3]]
    assert joined.nfe == [2, 3, 2]
    assert joined.keys.tolist() == [11, 10, 11]
    back = joined.select([1, 0])
    assert torch.equal(back.behaviour_logp, trajectory.behaviour_logp)
    for steps in range(4):
        assert torch.equal(back.canvas(steps), trajectory.canvas(steps))


def test_a_joined_trajectory_has_the_steps_of_the_longest(trajectory):
    whole = trajectory.select([1])
    short = replace(whole, selection_logp=whole.selection_logp[:, :2])
    joined = Trajectory.concatenate([short, trajectory])
    assert joined.num_steps == 3
    assert joined.behaviour_logp.tolist() == [-15.5, -5.25, -15.5]


def test_entropies_are_joined_if_all_parts_measured_them_with_nothing_after_a_rows_last_step(trajectory):
    measured = replace(trajectory, entropy=torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64))
    two_steps = torch.tensor([[4.0, 5.0]], dtype=torch.float64)
    short = replace(measured.select([1]), selection_logp=torch.zeros_like(two_steps), entropy=two_steps)
    joined = Trajectory.concatenate([short, measured]).entropy
    assert joined is not None and str(joined.tolist()) == "[[4.0, 5.0, nan], [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]"
    assert Trajectory.concatenate([measured, trajectory]).entropy is None
    assert Trajectory.concatenate([trajectory]).entropy is None


def test_blocks_are_joined_if_all_parts_recorded_them(trajectory):
    cut = replace(trajectory, block_of=torch.tensor([[0, 0, 1], [0, 1, 1]]))
    joined = Trajectory.concatenate([cut.select([1]), cut])
    assert joined.block_of.tolist() == [[0, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert Trajectory.concatenate([cut, trajectory]).block_of is None


def test_joined_predictions_go_on_with_what_each_row_has_written(trajectory):
    """Rows of a part that took fewer steps, two of them, in front of one that took more."""
    twice = trajectory.select([1, 1])
    made = Predictions(torch.arange(12).view(2, 2, 3), -torch.arange(12).view(2, 2, 3).double())
    short = replace(twice, selection_logp=twice.selection_logp[:, :2], predictions=made)
    known = Predictions(torch.full((2, 3, 3), 5), torch.full((2, 3, 3), -1.0).double())
    joined = Trajectory.concatenate([short, replace(trajectory, predictions=known)]).predictions
    assert joined is not None and joined.tokens.shape == joined.logq.shape == (4, 3, 3)
    assert torch.equal(joined.tokens[:2, :2], made.tokens) and torch.equal(joined.logq[:2, :2], made.logq)
    assert joined.tokens[:2, 2].tolist() == [[7, 2, 3]] * 2 and joined.logq[:2, 2].abs().sum() == 0
    assert torch.equal(joined.tokens[2:], known.tokens) and torch.equal(joined.logq[2:], known.logq)
    assert Trajectory.concatenate([short, trajectory]).predictions is None


def test_one_part_joined_is_that_part(trajectory):
    joined = Trajectory.concatenate([trajectory])
    assert (joined.gen_length, joined.transform, joined.update) == (3, Transform(0.5), 4)
    assert joined.events.op.tolist() == [Op.WRITE] * 3 + [Op.REMASK] + [Op.WRITE] * 4 + [Op.EDIT]
    assert joined.canvas(3).tolist() == trajectory.canvas(3).tolist()


def test_what_was_sampled_differently_is_not_joined(trajectory):
    for other in (replace(trajectory, update=5), replace(trajectory, planner_temperature=0.5)):
        with pytest.raises(ValueError, match="2 ways"):
            Trajectory.concatenate([trajectory, other])
    with pytest.raises(ValueError, match="0 ways"):
        Trajectory.concatenate([])
