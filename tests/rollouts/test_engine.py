"""The in-process engine: order, batches, randomness by key, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from dllm_rl import rng
from dllm_rl.errors import DataError, ModelContractError, RecipeError
from dllm_rl.rollouts.engine import LocalEngine, RolloutSettings
from dllm_rl.rollouts.generate_text import complete, generate_text
from dllm_rl.samplers.drivers.ahead import LookAhead
from dllm_rl.samplers.drivers.best_of import BestOfN
from dllm_rl.samplers.drivers.particles import Smc
from dllm_rl.samplers.drivers.search import Mcts
from dllm_rl.samplers.generate import generate

PROMPTS = [[5, 6, 7, 8], [9], [1, 2, 3], [4, 4], [9], [3, 2, 1, 0, 5]]
SETTINGS = RolloutSettings(gen_length=8, steps=4, block_length=4)


@pytest.fixture
def keys() -> torch.Tensor:
    return rng.sample_keys(0, torch.arange(len(PROMPTS)))


def test_rows_come_back_in_order_whatever_the_batch_size(tiny, keys):
    whole = LocalEngine(tiny, SETTINGS).generate(PROMPTS, keys)
    assert whole.prompts == PROMPTS
    assert torch.equal(whole.keys, keys)
    assert whole.completions[1] != whole.completions[4]  # equal prompts, different keys
    for batch_size in (1, 2, 4, 100):
        out = LocalEngine(tiny, SETTINGS, batch_size).generate(PROMPTS, keys)
        assert out.completions == whole.completions
        assert torch.equal(out.reveal_step, whole.reveal_step)
        torch.testing.assert_close(out.behaviour_logp, whole.behaviour_logp, rtol=0, atol=1e-4)


def test_who_watches_is_told_which_prompts_a_batch_holds(tiny, keys):
    seen = []

    def watch(rows, step, canvas):
        held = [canvas.tokens[place, : canvas.prompt_length].tolist() for place in range(len(rows))]
        assert all(tokens[-len(PROMPTS[row]) :] == PROMPTS[row] for row, tokens in zip(rows, held, strict=True))
        seen.append((tuple(rows), step, int(canvas.hidden.sum())))

    out = LocalEngine(tiny, SETTINGS, 4).generate(PROMPTS, keys, watch=watch)
    assert out.completions == LocalEngine(tiny, SETTINGS).generate(PROMPTS, keys).completions
    first, second = dict.fromkeys(rows for rows, _, _ in seen)
    assert sorted([*first, *second]) == list(range(len(PROMPTS)))
    assert [(step, hidden) for rows, step, hidden in seen if rows == first] == [
        (0, 32),
        (1, 24),
        (2, 16),
        (3, 8),
        (4, 0),
    ]


@pytest.mark.parametrize("driver", [BestOfN(n=2), Smc(n=2, every=1, ess=1.0), LookAhead(n=2), Mcts(2)])
def test_a_driver_runs_in_batches_that_change_nothing(tiny, keys, driver):
    whole, forwards = LocalEngine(tiny, SETTINGS).drive(driver, PROMPTS, keys)
    assert whole.prompts == PROMPTS and whole.exactness == "none"
    batched, counts = LocalEngine(tiny, SETTINGS, 4).drive(driver, PROMPTS, keys)
    assert batched.completions == whole.completions and counts == forwards
    alone = driver(tiny, PROMPTS[4:5], LocalEngine(tiny, SETTINGS).sampler, keys[4:5])
    assert alone.trajectory.completions == [whole.completions[4]] and alone.forwards == [forwards[4]]
    with pytest.raises(DataError, match="2 keys for 1 prompts"):
        LocalEngine(tiny, SETTINGS).drive(driver, PROMPTS[:1], keys[:2])


def test_a_driver_cannot_be_watched(tiny):
    with pytest.raises(RecipeError, match="cannot be watched"):
        complete(tiny, ["1+1="], SETTINGS, chat=False, watch=lambda rows, step, canvas: None, driver=BestOfN(n=2))


def test_it_generates_what_generate_does(tiny, keys):
    out = LocalEngine(tiny, SETTINGS, 2).generate(PROMPTS, keys, update=7)
    same = generate(tiny, PROMPTS, sampler="rl", gen_length=8, steps=4, block_length=4, temperature=1.0)
    assert out.completions == same.completions
    assert (out.update, same.update) == (7, 0)


GIVEN = [[row, *[None] * 3, *range(20, 20 + row), *[None] * (4 - row)] if row < 4 else [None] * 8 for row in range(6)]


def test_each_prompt_keeps_its_own_template_whatever_the_batch_size(tiny, keys):
    whole = LocalEngine(tiny, SETTINGS).generate(PROMPTS, keys, fixed=GIVEN)
    for template, completion, known in zip(GIVEN, whole.completions, whole.given.tolist(), strict=True):
        assert [token for token in template if token is not None] == [
            token for token, fixed in zip(completion, known, strict=True) if fixed
        ]
        assert known == [token is not None for token in template]
    same = generate(tiny, PROMPTS, sampler="rl", gen_length=8, steps=4, block_length=4, temperature=1.0, fixed=GIVEN)
    assert same.completions == whole.completions
    for batch_size in (1, 2, 4):
        out = LocalEngine(tiny, SETTINGS, batch_size).generate(PROMPTS, keys, fixed=GIVEN)
        assert out.prompts == PROMPTS
        assert out.completions == whole.completions
        assert torch.equal(out.reveal_step, whole.reveal_step)
        torch.testing.assert_close(out.behaviour_logp, whole.behaviour_logp, rtol=0, atol=1e-4)


def test_templates_that_do_not_fit_are_found_before_anything_is_sampled(tiny, keys):
    calls = []
    tiny.network.register_forward_pre_hook(lambda *_: calls.append(1))
    engine = LocalEngine(tiny, SETTINGS, 1)
    with pytest.raises(DataError, match="the template of prompt 0 has 7 places for 8 positions"):
        engine.generate(PROMPTS, keys, fixed=[[None] * 7] + [[None] * 8] * 5)  # prompt 0 would come last but one
    with pytest.raises(DataError, match="5 templates of fixed tokens for 6 prompts"):
        engine.generate(PROMPTS, keys, fixed=GIVEN[:5])
    stopping = LocalEngine(tiny, RolloutSettings(gen_length=8, block_length=4, stop_at_eos=True))
    with pytest.raises(DataError, match="set stop_at_eos to False"):
        stopping.generate(PROMPTS, keys, fixed=GIVEN)
    assert not calls


def test_the_network_is_evaluated_and_left_as_it_was(tiny, keys):
    tiny.network.train()
    modes = []
    tiny.network.register_forward_pre_hook(lambda module, _: modes.append((module.training, torch.is_grad_enabled())))
    LocalEngine(tiny, SETTINGS).generate(PROMPTS, keys)
    assert set(modes) == {(False, False)}
    assert tiny.network.training


def test_flags_say_what_the_likelihood_is(tiny):
    assert LocalEngine(tiny, SETTINGS).exact_logp
    assert LocalEngine(tiny, RolloutSettings(sampler="llada", gen_length=4)).exact_logp
    greedy = LocalEngine(tiny, RolloutSettings(gen_length=4, temperature=0.0))
    assert greedy.returns_trajectory and not greedy.exact_logp


def test_mistakes_are_found_before_anything_is_sampled(tiny, keys):
    with pytest.raises(RecipeError, match="did you mean 'llada'"):
        LocalEngine(tiny, RolloutSettings(sampler="llda"))
    with pytest.raises(RecipeError, match="no option 'threshold'"):
        LocalEngine(tiny, RolloutSettings(options={"threshold": 0.9}))
    with pytest.raises(RecipeError, match="batch_size is 0"):
        LocalEngine(tiny, SETTINGS, 0)
    with pytest.raises(DataError, match="6 keys for 1 prompts"):
        LocalEngine(tiny, SETTINGS).generate([[1]], keys)
    long = RolloutSettings(gen_length=tiny.max_positions - 3)
    with pytest.raises(DataError, match="prompt 0 has 4 tokens"):
        LocalEngine(tiny, long, 1).generate(PROMPTS, keys)


def test_text_goes_in_and_text_comes_out(tiny):
    settings = RolloutSettings(gen_length=16, temperature=0.5)
    rows = generate_text(tiny, ["1+1=", "what is 2+2?"], settings, batch_size=1)
    assert [row.prompt for row in rows] == ["1+1=", "what is 2+2?"]
    assert [row.forwards for row in rows] == [16, 16]
    assert rows == generate_text(tiny, ["1+1=", "what is 2+2?"], settings)
    assert rows != generate_text(tiny, ["1+1=", "what is 2+2?"], settings, seed=1)
    ids = tiny.tokenizer("1+1=", add_special_tokens=False)["input_ids"]
    out = generate(tiny, [ids], sampler="rl", gen_length=16, temperature=0.5)
    assert rows[0].completion == tiny.tokenizer.decode(out.completions[0], skip_special_tokens=True)
    assert not rows[0].finished


def test_text_ends_at_the_first_end_of_sequence(tiny):
    settings = RolloutSettings(gen_length=40, temperature=1.0)
    rows = generate_text(tiny, ["a"] * 4, settings)
    ids = tiny.tokenizer("a", add_special_tokens=False)["input_ids"]
    out = generate(tiny, [ids] * 4, sampler="rl", gen_length=40, temperature=1.0)
    assert {row.finished for row in rows} == {True, False}
    for row, completion in zip(rows, out.completions, strict=True):
        eos = tiny.spec.eos_ids[0]
        kept = completion[: completion.index(eos)] if row.finished else completion
        assert row.completion == tiny.tokenizer.decode(kept, skip_special_tokens=True)


def test_a_chat_template_is_applied_unless_the_text_is_to_be_continued(tiny):
    tiny.tokenizer.chat_template = "{% for message in messages %}Q:{{ message['content'] }} A:{% endfor %}"
    settings = RolloutSettings(gen_length=8)
    (chat,) = generate_text(tiny, ["2+2"], settings)
    (plain,) = generate_text(tiny, ["Q:2+2 A:"], settings, chat=False)
    assert chat.completion == plain.completion != generate_text(tiny, ["2+2"], settings, chat=False)[0].completion


def test_text_that_cannot_be_used_is_refused(tiny):
    with pytest.raises(DataError, match="prompt 1 is empty"):
        generate_text(tiny, ["a", ""], SETTINGS)
    tiny.tokenizer.chat_template = None
    with pytest.raises(ModelContractError, match="no chat template"):
        generate_text(tiny, ["a"], SETTINGS)
    tiny.tokenizer = None
    with pytest.raises(ModelContractError, match="no tokenizer"):
        generate_text(tiny, ["a"], SETTINGS)
