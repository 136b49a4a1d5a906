"""The sampling loop: propose, score, select, write, revise, record. The only place that changes a canvas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from dllm_rl.diffusion import ledger
from dllm_rl.diffusion.trajectory import Exactness, Op
from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.blocks import Blocks
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.network import Network, mean_entropy, propose, propose_pair, propose_with_shadow
from dllm_rl.samplers.propose import Draw, Proposal, draw
from dllm_rl.samplers.random_rules import PlannerBernoulli
from dllm_rl.samplers.record import Recorder
from dllm_rl.samplers.revise.base import NOTHING, Revise, Revision
from dllm_rl.samplers.schedule import Schedule
from dllm_rl.samplers.score import BlindScore, DrawnScore, Score
from dllm_rl.samplers.select import Choice, Everything, Select

Watch = Callable[[int, Canvas], None]
"""Looks on: called with the number of forwards done and the canvas, before the first forward and after each."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """A way to decode, put together from components."""

    transform: Transform
    """What tokens are drawn from."""
    score: Score
    select: Select
    blocks: Blocks
    revise: Revise = NOTHING
    end_ids: tuple[int, ...] = ()
    """A row is finished when a block that holds one of these is full; the rest is filled with the first of them."""
    measure_entropy: bool = False
    """Record the mean entropy of the open positions at every step."""
    record_predictions: bool = False
    """Record what every step predicts of all that is hidden, later blocks too: `Trajectory.predictions`. The forwards
    stay as many; the rollout stays the same, bit for bit where the head's product does not depend on its size."""
    schedule: Schedule | None = None
    """Who decides, step by step, about the rule and the distribution; `select` is then what it starts from."""

    def __post_init__(self) -> None:
        if self.record_predictions and self.blocks.aligned:
            raise RecipeError(
                "one-step completions are asked for, and a block-causal model cannot predict the blocks after the open "
                "one; use a model that sees the whole canvas, or a method that does not judge them"
            )
        if self.record_predictions and self.schedule is not None:
            raise RecipeError(
                "one-step completions are asked for, and a schedule changes what they are drawn from step by step; "
                "choose a sampler without a schedule"
            )

    def at(self, update: int) -> Sampler:
        """The sampler of a rollout made after so many updates."""
        return self if self.schedule is None else replace(self, schedule=self.schedule.at(update))

    @property
    def exactness(self) -> Exactness:
        """What the log-probability of a rollout is, when the network's logits are exact."""
        if self.transform.temperature == 0:
            return "none"
        if isinstance(self.score, BlindScore) or isinstance(self.select, Everything):
            return "exact"
        return "none" if self.select.random else "exact_with_F"

    @property
    def planner_temperature(self) -> float | None:
        """Of the coins that a planner head's logits load; None for any other way to choose positions."""
        return self.select.temperature if isinstance(self.select, PlannerBernoulli) else None


@dataclass(frozen=True, slots=True)
class State:
    """A rollout under way; `select` forks it."""

    canvas: Canvas
    network: Network
    recorder: Recorder

    def select(self, index: Tensor) -> State:
        return State(self.canvas.select(index), self.network.select(index), self.recorder.select(index))


def start(canvas: Canvas, network: Network) -> State:
    """A rollout with nothing written but what is given."""
    recorder = Recorder(len(canvas.keys))
    recorder.changed(Op.FIX, canvas, ~canvas.editable)
    nobody = torch.zeros_like(canvas.finished)
    return State(canvas.open_next_block(stay=nobody), network, recorder)


def run(state: State, sampler: Sampler, mask_id: int, watch: Watch | None = None) -> State:
    """Write every hidden position of every row."""
    steps = 0
    if watch is not None:
        watch(steps, state.canvas)
    while not bool(state.canvas.finished.all()):
        state = advance(state, sampler, mask_id)
        steps += 1
        if watch is not None:
            watch(steps, state.canvas)
    return state


@dataclass(frozen=True, slots=True)
class Sight:
    """What the network said of a state in one forward."""

    proposal: Proposal
    """Of the positions to write."""
    opinion: Proposal
    """Of those written, as far as the reviser wants to know."""
    beyond: Proposal | None = None
    """Of those hidden that this step may not write; None if predictions are not recorded."""

    def select(self, index: Int64[Tensor, " R"], canvas: Canvas) -> Sight:
        """The same for a fork: `canvas` holds copies of the rows at `index`, whose keys may have been changed since."""
        beyond = None if self.beyond is None else self.beyond.of_rows(index, canvas)
        return Sight(self.proposal.of_rows(index, canvas), self.opinion.of_rows(index, canvas), beyond)


def advance(state: State, sampler: Sampler, mask_id: int) -> State:
    """One forward of every unfinished row, and all that follows from it. The log is continued in place."""
    return act(state, look(state, sampler), sampler, mask_id)


def act(state: State, sight: Sight, sampler: Sampler, mask_id: int) -> State:
    """All that follows from one forward: choose, draw, write, revise, record. The log is continued in place."""
    before, recorder, proposal = state.canvas, state.recorder, sight.proposal
    if sampler.schedule is not None:
        plan = sampler.schedule(proposal, before, state.network)
        proposal, sampler = plan.proposal, replace(sampler, select=plan.select)
        recorder.scheduled(plan.trace)
    entropy = None
    if sampler.measure_entropy:
        entropy = mean_entropy(proposal, sampler.transform.forbidden_ids, len(before.keys))
    step = _choose(proposal, before, sampler)
    if sampler.record_predictions:
        recorder.predicted(*_predicted(sight, step, before, sampler.transform))
    after = _write(before, step)
    recorder.written(after, step.written.row, step.written.index, step.tokens.logq)
    revision = sampler.revise(before, after, sight.opinion)
    recorder.forward(_sum([step.choice.logp, step.losing, revision.logp], like=after.logp), entropy)
    after = _revised(after, revision, mask_id, recorder)
    after = replace(after, memory={**after.memory, **step.choice.memory, **revision.memory})
    after = _fill_after_the_end(after, revision.unsettled, sampler.end_ids, recorder)
    return State(after.open_next_block(stay=revision.unsettled), state.network, recorder)


def _sum(parts: list[Float64[Tensor, " B"] | None], like: Float64[Tensor, "B L"]) -> Float64[Tensor, " B"]:
    total = torch.zeros_like(like[:, 0])
    for part in parts:
        total = total if part is None else total + part
    return total


@dataclass(frozen=True, slots=True)
class _Step:
    choice: Choice
    written: Proposal
    """The positions chosen, in the order in which they were taken."""
    tokens: Draw
    drawn: Draw | None
    """At every open position, where that was needed."""
    scores: Float64[Tensor, " C"]
    losing: Float64[Tensor, " B"] | None
    """Log-probability that what was left out drew nothing better, nats; None when nothing was drawn there."""


def look(state: State, sampler: Sampler) -> Sight:
    """One forward of every unfinished row. A state is looked at once: its cache, if it has one, then stands further."""
    network, canvas, eligible = state.network, state.canvas, state.canvas.eligible
    with_plan = isinstance(sampler.score, BlindScore) and sampler.score.reads_plan
    asked = canvas.unwritten if sampler.record_predictions else eligible
    if sampler.revise.reads == "written":
        everything = propose(network, canvas, canvas.window | asked, with_plan)
        hidden = canvas.hidden[everything.row, everything.index]
        proposal, opinion = everything.select(hidden), everything.select(~hidden)
    elif sampler.revise.reads == "shadow":
        proposal, opinion = propose_with_shadow(network, canvas, asked, canvas.window & ~canvas.hidden)
    else:
        guides = sampler.schedule is not None and sampler.schedule.guides
        proposal = propose_pair(network, canvas, asked) if guides else propose(network, canvas, asked, with_plan)
        opinion = proposal.select(torch.zeros_like(proposal.row, dtype=torch.bool))
    if not sampler.record_predictions:
        return Sight(proposal, opinion)
    open_now = eligible[proposal.row, proposal.index]
    return Sight(proposal.select(open_now), opinion, proposal.select(~open_now))


def _predicted(
    sight: Sight, step: _Step, canvas: Canvas, transform: Transform
) -> tuple[Int64[Tensor, "B L"], Float64[Tensor, "B L"]]:
    """Every row's completion with a draw at each hidden position, and the log-probabilities of the draws.

    Each position has a key of its own, so that drawing where nothing is written leaves the rollout as it is.
    """
    assert sight.beyond is not None and step.drawn is not None, "predictions are recorded"
    tokens, logq = canvas.completion, torch.zeros_like(canvas.logp)
    for part, draws in ((sight.proposal, step.drawn), (sight.beyond, draw(sight.beyond, transform))):
        cell = (part.row, part.index)
        tokens, logq = tokens.index_put(cell, draws.token), logq.index_put(cell, draws.logq)
    return tokens, logq


def _choose(proposal: Proposal, canvas: Canvas, sampler: Sampler) -> _Step:
    score, eligible = sampler.score, canvas.eligible
    drawn = None
    if isinstance(score, DrawnScore) or sampler.record_predictions:
        drawn = draw(proposal, sampler.transform)
    if isinstance(score, DrawnScore):
        assert drawn is not None
        scores = proposal.gather(lambda part: score.of_tokens(part, canvas), drawn.token)
    else:
        scores = score.of_positions(proposal, canvas)
    choice = sampler.select(proposal.dense(scores, eligible.shape), eligible, proposal, canvas)
    chosen = choice.commit[proposal.row, proposal.index].nonzero()[:, 0]
    if choice.rank is not None:
        place = proposal.row * eligible.shape[1] + choice.rank[proposal.row, proposal.index]
        chosen = chosen[place[chosen].argsort()]
    written = proposal.select(chosen)
    tokens = draw(written, sampler.transform) if drawn is None else drawn.select(chosen)
    losing = None
    if isinstance(score, DrawnScore) and sampler.exactness == "exact_with_F":
        losing = _losing(proposal, choice, canvas, score, sampler.transform)
    return _Step(choice, written, tokens, drawn, scores[chosen].to(torch.float64), losing)


def _losing(
    proposal: Proposal, choice: Choice, canvas: Canvas, score: DrawnScore, transform: Transform
) -> Float64[Tensor, " B"]:
    """Sum over each row's positions left out of the log-probability that they drew something below their bar."""
    assert choice.bar is not None, "a rule that is not random sets a bar"
    total = torch.zeros(len(canvas.keys), dtype=torch.float64, device=canvas.keys.device)
    for chunk in proposal.split():
        part = chunk.select(~choice.commit[chunk.row, chunk.index])
        cell = (part.row, part.index)
        logq = transform.log_probs(part.logits.to(torch.float64))
        level, place = choice.bar.level[cell], choice.bar.place[cell]
        losing = ledger.losing_logp(logq, score.of_tokens(part, canvas), level, place, part.index)
        total = total.index_add(0, part.row, losing)
    return total


def _write(canvas: Canvas, step: _Step) -> Canvas:
    """The canvas with the step's tokens written, one forward and one turn on."""
    written, token = step.written, step.tokens.token
    logp = written.gather(lambda part: torch.log_softmax(part.logits.to(torch.float64), dim=-1), token)
    canvas = canvas.write(written.row, written.index, token, step.scores, logp)
    return replace(canvas, forwards=canvas.forwards + ~canvas.finished, turn=canvas.turn + 1)


def _revised(canvas: Canvas, revision: Revision, mask_id: int, recorder: Recorder) -> Canvas:
    if bool(revision.remask.any()):
        canvas = canvas.hide(revision.remask, mask_id)
        recorder.changed(Op.REMASK, canvas, revision.remask)
    if revision.edit is not None and revision.token is not None:
        canvas = canvas.overwrite(revision.edit, revision.token)
        recorder.changed(Op.EDIT, canvas, revision.edit)
    return canvas


def _fill_after_the_end(
    canvas: Canvas, unsettled: Bool[Tensor, " B"], end_ids: tuple[int, ...], recorder: Recorder
) -> Canvas:
    """Rows whose block is full and that have ended get the end token everywhere else."""
    if not end_ids:
        return canvas
    ends = torch.isin(canvas.completion, torch.tensor(end_ids, device=canvas.tokens.device)) & ~canvas.hidden
    complete = canvas.hidden.cumsum(dim=1) == 0
    ended = (ends & complete).any(dim=1) & ~canvas.eligible.any(dim=1) & ~unsettled & ~canvas.finished
    filled = canvas.hidden & ended[:, None]
    canvas = canvas.overwrite(filled, torch.full_like(canvas.completion, end_ids[0]))
    recorder.changed(Op.FIX, canvas, filled)
    return canvas
