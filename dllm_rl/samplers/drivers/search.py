"""Monte-Carlo tree search over the order in which the slots of a completion are filled. For research: it is costly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from dllm_rl.diffusion.denoiser import Denoiser
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.cache import CachePolicy
from dllm_rl.samplers.canvas import Canvas, Template
from dllm_rl.samplers.drivers.base import refuse_fewer
from dllm_rl.samplers.generate import begin, trajectory
from dllm_rl.samplers.loop import Sampler, State, advance, run
from dllm_rl.samplers.network import propose
from dllm_rl.samplers.revise.base import NOTHING


@dataclass(frozen=True, slots=True)
class Searched:
    """What was decoded in the order found. See `base.Driven`."""

    trajectory: Trajectory
    forwards: list[int]
    orders: list[list[int]]
    """Of each prompt, the slots in the order in which they were filled."""
    visits: list[list[dict[int, int]]]
    """Of each prompt and decision, how often each slot had been tried there."""
    values: list[list[dict[int, float]]]
    """Q of those tried at least once."""


@dataclass(frozen=True, slots=True)
class Mcts:
    """The blocks of the sampler are slots, filled in the order that a tree search finds best.

    A node is a canvas, reached by filling slots in any order; two orders that lead to the same canvas share it. A slot
    is filled by the sampler, restricted to it. From a node with N visits the slot a with the largest

        Q(a) + exploration * prior(a) * sqrt(N) / (1 + N(a))

    is tried, of equals the leftmost: the prior is its share of the confidences of the open slots (mean probability of
    the likeliest token), N counts the visit that made the node. A new node is rolled out by the sampler, slot by slot
    from the left. Q(a) is the mean over visits, 0 before the first, of

        slot_weight * (mean probability with which the slot's tokens were written)
        + (1 - slot_weight) * (the same of the tokens written after it, in the tree and in the rollout)

    or of the slot's own probability where nothing is left. After `simulations` the slot tried most often is filled, of
    equals the leftmost, and the search goes on from there with the part of the tree that it leads to.

    Tens to hundreds of times the forwards of plain sampling, one row at a time; sure is not right; no likelihood. Needs
    a model that attends both ways.

    Source: McDiffuSE, https://arxiv.org/abs/2602.12586; defaults of its appendix C.1, with slots of 4. No code is
    published: the form of the exploration term is AlphaZero's, and what the mean runs over is our reading.

    Raises:
        RecipeError: simulations below 1, exploration negative, slot_weight not in [0, 1]; when it runs, a cache, a
            block-causal model, or a sampler that revises.
    """

    simulations: int = 30
    """Before every decision."""
    exploration: float = 10.0
    slot_weight: float = 0.3

    def __post_init__(self) -> None:
        refuse_fewer("simulations", self.simulations)
        if not 0 <= self.exploration < math.inf:
            raise RecipeError(f"exploration is {self.exploration}; expected a finite number, at least 0")
        if not 0 <= self.slot_weight <= 1:
            raise RecipeError(f"slot_weight is {self.slot_weight}; expected a share, from 0 to 1")

    @torch.no_grad()
    def __call__(
        self,
        model: Denoiser,
        prompts: Sequence[Sequence[int]],
        sampler: Sampler,
        keys: Int64[Tensor, " P"],
        update: int = 0,
        *,
        fixed: Sequence[Template] | None = None,
        policy: CachePolicy | None = None,
    ) -> Searched:
        _refuse(sampler, policy)
        canvas = begin(model, prompts, sampler, keys, fixed=fixed).canvas  # all prompts are checked before any is run
        trees, parts = [], []
        for row, prompt in enumerate(prompts):
            given = None if fixed is None else [fixed[row]]
            state = begin(model, [prompt], sampler, canvas.keys[row : row + 1], fixed=given)
            trees.append(_Tree(self, sampler, model.spec.mask_id))
            parts.append(trajectory(trees[-1].decode(state), [prompt], model, sampler, None, update))
        return Searched(
            replace(Trajectory.concatenate(parts), exactness="none"),
            forwards=[tree.forwards for tree in trees],
            orders=[tree.order for tree in trees],
            visits=[tree.visits for tree in trees],
            values=[tree.values for tree in trees],
        )


def _refuse(sampler: Sampler, policy: CachePolicy | None) -> None:
    if policy is not None:
        raise RecipeError("slots are filled in any order, which caches are not made for; set cache to 'none'")
    if sampler.blocks.aligned:
        raise RecipeError("slots are filled in any order, and the model writes its blocks from left to right only")
    if sampler.revise != NOTHING:
        raise RecipeError("a slot that is filled must stay as it is, and this sampler revises; choose another")


@dataclass(frozen=True, slots=True)
class _Confidence:
    """Probabilities with which tokens were written: their sum and number."""

    total: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        return self.total / self.count


@dataclass(frozen=True, slots=True)
class _Edge:
    """What filling a slot led to."""

    child: _Node
    written: _Confidence


class _Node:
    """A canvas, and the search's account of every slot that is open in it."""

    def __init__(self, state: State, prior: dict[int, float]) -> None:
        self.state, self.prior = state, prior
        self.edges: dict[int, _Edge] = {}
        self.visits = dict.fromkeys(prior, 0)
        self.values = dict.fromkeys(prior, 0.0)
        """Sums over visits."""

    def next_slot(self, exploration: float) -> int:
        """The slot to try."""
        root = math.sqrt(1 + sum(self.visits.values()))
        urgency = {
            slot: (self.values[slot] / tried if tried else 0.0) + exploration * self.prior[slot] * root / (1 + tried)
            for slot, tried in self.visits.items()
        }
        return max(urgency, key=urgency.__getitem__)


class _Tree:
    """The search of one prompt."""

    def __init__(self, search: Mcts, sampler: Sampler, mask_id: int) -> None:
        self.search, self.sampler, self.mask_id = search, sampler, mask_id
        self.forwards = 0
        self.order: list[int] = []
        self.visits: list[dict[int, int]] = []
        self.values: list[dict[int, float]] = []
        self._nodes: dict[tuple[int, ...], _Node] = {}

    def decode(self, state: State) -> State:
        """The finished state; the order of its slots, and what led to it, are kept."""
        while not bool(state.canvas.finished):
            root, _ = self._node(state)
            for _ in range(self.search.simulations if len(root.prior) > 1 else 1):
                self._simulate(root)
            self.visits.append(dict(root.visits))
            self.values.append({slot: root.values[slot] / root.visits[slot] for slot in root.edges})
            self.order.append(max(root.visits, key=root.visits.__getitem__))
            state = self._filled(state, self.order[-1])
        return state

    def _simulate(self, node: _Node) -> None:
        """Walk down to a new node or to the end, roll out, and tell every edge on the way."""
        path, new = list[tuple[_Node, int]](), False
        while node.prior and not new:
            slot = node.next_slot(self.search.exploration)
            path.append((node, slot))
            if slot not in node.edges:
                after = self._filled(node.state, slot)
                child, new = self._node(after)
                node.edges[slot] = _Edge(child, _written(after.canvas, after.canvas.block_of[0] == slot))
            node = node.edges[slot].child
        rest = self._rollout(node.state) if node.prior else _Confidence()
        share = self.search.slot_weight
        for node, slot in reversed(path):
            own = node.edges[slot].written
            node.visits[slot] += 1
            node.values[slot] += share * own.mean + (1 - share) * (rest.mean if rest.count else own.mean)
            rest = _Confidence(rest.total + own.total, rest.count + own.count)

    def _node(self, state: State) -> tuple[_Node, bool]:
        """The node of a state, and whether it is new.

        Draws depend on the forwards made, so canvases that took different numbers of them are not the same.
        """
        name = (int(state.canvas.forwards), *state.canvas.completion[0].tolist())
        new = name not in self._nodes
        if new:
            self._nodes[name] = _Node(state, self._prior(state))
        return self._nodes[name], new

    def _prior(self, state: State) -> dict[int, float]:
        canvas = state.canvas
        if bool(canvas.finished):
            return {}
        self.forwards += 1
        proposal = propose(state.network, canvas, canvas.hidden & canvas.editable, with_plan=False)
        permitted = Transform(forbidden_ids=self.sampler.transform.forbidden_ids)
        peak = proposal.per_position(lambda logits: permitted.log_probs(logits).amax(dim=-1).exp())
        block = canvas.block_of[0, proposal.index]
        mean = {slot: float(peak[block == slot].mean()) for slot in sorted(set(block.tolist()))}
        return {slot: value / sum(mean.values()) for slot, value in mean.items()}

    def _filled(self, state: State, slot: int) -> State:
        """A fork of the state with `slot` full."""
        block = torch.full_like(state.canvas.block, slot)
        before = int(state.canvas.forwards)
        state = state.select(torch.zeros_like(block))
        state = replace(state, canvas=state.canvas.open_block(block))
        while not bool(state.canvas.finished) and int(state.canvas.block) == slot:
            state = advance(state, self.sampler, self.mask_id)
        self.forwards += int(state.canvas.forwards) - before
        return state

    def _rollout(self, state: State) -> _Confidence:
        """The rest written from left to right by the sampler."""
        before = state.canvas
        after = run(state.select(torch.zeros_like(before.block)), self.sampler, self.mask_id).canvas
        self.forwards += int(after.forwards) - int(before.forwards)
        return _written(after, before.hidden[0])


def _written(canvas: Canvas, positions: Tensor) -> _Confidence:
    """Of those of the positions whose token was drawn."""
    logp = canvas.logp[0, positions]
    drawn = logp[~logp.isnan()]
    return _Confidence(float(drawn.exp().sum()), len(drawn))
