"""Failed groups are rescued by hinted completions, and nothing else changes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from dllm_rl.algorithms import IGPO, DiffuGRPO
from dllm_rl.algorithms.hints import HintSettings, StretchedPlacement
from dllm_rl.errors import RecipeError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.rng import fold
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.hints import draw_hint, strip_answer
from dllm_rl.rollouts.rewards import RewardPanel
from dllm_rl.rollouts.text import decode_until_eos
from dllm_rl.toys.tokenizer import character_tokenizer
from dllm_rl.training.data import PromptRow
from dllm_rl.training.inpaint import Inpainter, make_inpainter
from dllm_rl.training.order import Layout, visit_at, visit_keys
from dllm_rl.training.source import RolloutSource

G, LENGTH = 4, 8
HINTS = HintSettings(
    min_chunk=1, max_chunk=3, min_share=0.4, max_share=0.9, correct_reward="correct", replaced_share=0.5
)
TEXT = "abcdefgh=7"
ROWS = [
    PromptRow([40 + i, 41 + i], f"p{i}", {"answer": "7"}, strip_answer(TEXT[i % 2 :], "7", character_tokenizer()))
    for i in range(6)
]


class Judge:
    """Correct are completions with a letter of the trace, in most groups; a second function is worth more."""

    def __init__(self, correct: Any = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.rule = correct or (lambda text: sum(letter in text for letter in "abcdefgh") >= 2)

    def panel(self) -> RewardPanel:
        def other(completions: list[str], **columns: Any) -> list[float]:
            return [len(text) / 10 for text in completions]

        def correct(completions: list[str], **columns: Any) -> list[float | None]:
            self.calls.append({"completions": completions, **columns})
            return [self.rule(text) for text in completions]

        return RewardPanel([other, correct], weights=[1.0, 3.0])


def make_source(model: DiffusionModel, judge: Judge, algorithm: Any = None) -> RolloutSource:
    algorithm = algorithm or IGPO(hints=HINTS, kl_coefficient=0)
    engine = LocalEngine(model, RolloutSettings(gen_length=LENGTH, steps=4), batch_size=5)
    names = ["other", "correct"]
    inpainter = algorithm.inpainting and make_inpainter(
        algorithm.inpainting, names, names, num_generations=G, gen_length=LENGTH
    )
    device = torch.device("cpu")
    return RolloutSource(ROWS, 5, engine, judge.panel(), algorithm, G, decode_until_eos(model), device, inpainter)


WHOLE = Layout(rank=0, world=1, num_micro_batches=1, per_device=6)


def test_failed_groups_alone_are_rolled_out_again_and_every_completion_is_judged_once(tiny: DiffusionModel) -> None:
    judge = Judge()
    harvest = make_source(tiny, judge).harvest(0, WHOLE, update=3)
    visits = [visit_at(5, 0, slot, 6, 6) for slot in range(6)]
    keys = visit_keys(5, visits, G)
    rows = [ROWS[v.row] for v in visits for _ in range(G)]
    first, second = judge.calls
    right = torch.tensor([judge.rule(text) for text in first["completions"]]).view(6, G)
    failed = [group for group in range(6) if not right[group].any()]
    again = [group * G + g for group in failed for g in range(G)]
    assert 2 <= len(failed) <= 5
    assert second["prompts"] == [rows[row].prompt for row in again]

    engine = LocalEngine(tiny, RolloutSettings(gen_length=LENGTH, steps=4))
    hints = [draw_hint(rows[r].trace, LENGTH, fold(keys, "hint")[r], _rule()) for r in again]
    hinted = engine.generate([rows[row].ids for row in again], fold(keys, "hinted rollout")[again], 3, fixed=hints)
    decode = decode_until_eos(tiny)
    assert second["completions"] == [decode(ids) for ids in hinted.completions]
    originals = engine.generate([row.ids for row in rows], fold(keys, "rollout"), 3)

    (material,) = harvest.material
    assert material.trajectory is not None
    learned, wrote = material.trajectory.completions, 0
    for group in range(6):
        slots = range(group * G, group * G + G)
        replaced = [s for s in slots if learned[s] != originals.completions[s]]
        if group not in failed:
            assert not replaced
            continue
        place = failed.index(group) * G
        found = [hinted.completions[place + g] for g in range(G) if judge.rule(second["completions"][place + g])]
        assert len(replaced) == min(len(found), math.floor(0.5 * G))
        assert Counter(map(tuple, (learned[s] for s in replaced))) <= Counter(map(tuple, found))
        wrote += len(replaced)
    assert wrote >= 2
    assert [s.completion for s in harvest.samples] == [decode(ids) for ids in learned], (
        "what is shown is what is learned"
    )
    assert torch.equal(material.keys, keys), "slots keep their keys"
    _check_metrics(harvest.metrics, right, failed, wrote, second, hints, judge)


def _check_metrics(metrics, right, failed, wrote, second, hints, judge):  # type: ignore[no-untyped-def]
    value = {name: mean.value.item() for name, mean in metrics.items()}
    assert value["inpaint/failed_groups"] == pytest.approx(len(failed) / 6)
    assert value["inpaint/replaced"] == pytest.approx(wrote / 24)
    correct = torch.tensor([judge.rule(text) for text in second["completions"]]).view(-1, G)
    assert value["inpaint/correct_candidates"] == pytest.approx(correct.double().mean().item())
    assert value["inpaint/rescued_groups"] == pytest.approx(correct.any(1).double().mean().item())
    given = sum(token is not None for hint in hints for token in hint)
    assert value["inpaint/hint_share"] == pytest.approx(given / (len(hints) * LENGTH))
    assert value["reward/correct"] == pytest.approx(right.double().mean().item()), "of the policy's own completions"


def _rule():  # type: ignore[no-untyped-def]
    return make_inpainter(HINTS, ["correct"], ["correct"], num_generations=G, gen_length=LENGTH).rule


WAYS = {
    "rl": RolloutSettings(sampler="rl", gen_length=LENGTH, steps=4),
    "llada": RolloutSettings(sampler="llada", gen_length=LENGTH, steps=4, block_length=4),
    "threshold": RolloutSettings(sampler="threshold", gen_length=LENGTH, options={"threshold": 0.02}),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_hints_are_bit_identical_after_denoising_and_advantages_sum_to_zero(
    tiny: DiffusionModel, way: RolloutSettings
) -> None:
    source = replace(make_source(tiny, Judge()), engine=LocalEngine(tiny, way))
    (material,) = source.harvest(0, WHOLE, 0).material
    trajectory = material.trajectory
    assert trajectory is not None and material.advantage is not None
    ids = {text: list(character_tokenizer()(text, add_special_tokens=False)["input_ids"]) for text in (TEXT, TEXT[1:])}
    hinted = trajectory.given.any(1).nonzero()[:, 0].tolist()
    assert len(hinted) >= 2
    visits = [visit_at(5, 0, slot, 6, 6) for slot in range(6)]
    for row in hinted:
        text = TEXT[visits[row // G].row % 2 :]
        for position in trajectory.given[row].nonzero()[:, 0].tolist():
            assert int(trajectory.tokens[row, position]) == ids[text][position]
            assert int(trajectory.completion_canvas(0)[row, position]) == ids[text][position]
    sums = material.advantage.view(6, G).sum(1)
    torch.testing.assert_close(sums, torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    rescued = {row // G for row in hinted}
    assert all(material.advantage.view(6, G)[group].abs().max() > 0.5 for group in rescued)


def test_any_layout_rescues_the_same_groups(tiny: DiffusionModel) -> None:
    def together(layouts: list[Layout]) -> dict[int, Any]:
        found = {}
        for layout in layouts:
            for m in make_source(tiny, Judge()).harvest(0, layout, 0).material:
                assert m.trajectory is not None and m.advantage is not None
                for key, ids, a in zip(m.keys.tolist(), m.trajectory.completions, m.advantage.tolist(), strict=True):
                    found[key] = ids, a
        return found

    one = together([WHOLE])
    assert together([Layout(rank, 2, 3, 1) for rank in range(2)]) == one


def test_without_failed_groups_nothing_more_is_sampled(tiny: DiffusionModel) -> None:
    judge = Judge(lambda text: True)
    harvest = make_source(tiny, judge).harvest(0, WHOLE, 0)
    plain = make_source(tiny, Judge(lambda text: True), DiffuGRPO(kl_coefficient=0)).harvest(0, WHOLE, 0)
    assert len(judge.calls) == 1
    (a,), (b,) = harvest.material, plain.material
    assert torch.equal(a.sequences.tokens, b.sequences.tokens) and torch.equal(a.advantage, b.advantage)
    extra = harvest.metrics.keys() - plain.metrics.keys()
    again = make_source(tiny, Judge(lambda text: False)).harvest(0, WHOLE, 0)
    assert extra == again.metrics.keys() - plain.metrics.keys(), "the same names on every process"
    assert all(harvest.metrics[name].count == 0 for name in extra if "candidates" in name or "rescued" in name)


@pytest.mark.parametrize("value", [None, 0.0, 0.99])
def test_what_is_not_known_to_be_correct_is_not(tiny: DiffusionModel, value: float | None) -> None:
    """A partial score, or none, neither keeps a group from being rescued nor takes a place in it."""
    judge = Judge(lambda text: value)
    harvest = make_source(tiny, judge).harvest(0, WHOLE, 0)
    assert harvest.metrics["inpaint/failed_groups"].value == 1.0
    assert harvest.metrics["inpaint/replaced"].value == 0.0
    assert not harvest.material[0].trajectory.given.any()  # type: ignore[union-attr]


def test_the_replaced_are_random_and_every_one_may_be(tiny: DiffusionModel) -> None:
    """With one correct candidate a group, each slot is taken about equally often."""
    inpainter = make_inpainter(HINTS, ["correct"], ["correct"], num_generations=G, gen_length=LENGTH)
    source = make_source(tiny, Judge())
    rows = [ROWS[0]] * G
    base = source._roll_out(rows, torch.arange(G), update=0)
    wrong = replace(base, per_function={"correct": [0.0] * G})
    taken = Counter()  # type: ignore[var-annotated]
    for seed in range(80):
        keys = fold(torch.arange(G), seed)
        one_right = replace(base, per_function={"correct": [0.0, 1.0, 0.0, 0.0]}, texts=["hinted"] * G)
        augmented, _ = inpainter.augment(wrong, keys, lambda *_, found=one_right: found)
        (slot,) = [s for s, text in enumerate(augmented.texts) if text == "hinted"]
        assert augmented.per_function["correct"][slot] == 1.0
        taken[slot] += 1
    assert all(9 <= taken[slot] <= 32 for slot in range(G)), taken


def test_settings_become_the_rule() -> None:
    made = make_inpainter(
        HintSettings(placement=StretchedPlacement(free_tail=3), replaced_share=0.3, correct_value=2.0),
        ["a.py:x", "a.py:y"][:1],
        ["a.x"],
        num_generations=8,
        gen_length=20,
    )
    assert isinstance(made, Inpainter)
    assert (made.most_replaced, made.correct_reward, made.correct_value) == (2, "a.x", 2.0)
    assert made.rule.chunk_size == (5, 10) and made.rule.share == (0.2, 0.6) and made.rule.placement.room(20) == 17
    with pytest.raises(RecipeError, match=r"leaves no room for hints in rollout.gen_length 20; lower free_tail"):
        make_inpainter(HintSettings(placement=StretchedPlacement()), ["x"], ["x"], num_generations=8, gen_length=20)
