"""The drift of a rollout: nothing without a cache, something through one that is out of date."""

from __future__ import annotations

import pytest
import torch

from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.samplers.drift import measure_drift
from dllm_rl.samplers.generate import generate
from dllm_rl.toys.families import tiny_sdar
from dllm_rl.toys.model import tiny_llada
from tests.samplers.oracle import Table

PROMPTS = [[1, 2, 3, 4, 5], [7], [3, 3, 3]]
APPROXIMATE = ("prefix", "dual", "dkv", "vicinity")


def sharpened() -> DiffusionModel:
    """A fresh model is close to uniform and hardly looks around; this one does."""
    model = tiny_llada(seed=3, layers=2)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(3.0 if parameter.dim() == 2 else 1.0)
    return model


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_a_rollout_without_a_cache_does_not_drift(cfg_scale):
    out = generate(Table(longest=5), [[1], [2]], gen_length=4, temperature=1.0, cfg_scale=cfg_scale, steps=2)
    assert measure_drift(Table(longest=5), out).largest < 1e-12


@pytest.mark.parametrize(("cache", "cfg_scale"), [*((name, 0.0) for name in APPROXIMATE), ("dual", 1.0)])
def test_a_cache_that_is_out_of_date_is_flagged_and_its_drift_is_seen(cache, cfg_scale):
    model = sharpened()
    # Long enough that columns lie beyond the 16 on either side that "vicinity" recomputes.
    settings = {"gen_length": 48, "block_length": 8, "temperature": 1.0, "cfg_scale": cfg_scale}
    exact = generate(model, PROMPTS, **settings)
    cached = generate(model, PROMPTS, cache=cache, **settings)
    assert exact.exactness == "exact_with_F" and cached.exactness == "approximate_cache"
    assert measure_drift(model, exact).largest < 1e-4
    # The tokens of each block's first forward, which recomputes everything, do not drift.
    drift = measure_drift(model, cached)
    assert drift.largest > 1e-3
    assert float(drift.per_token[cached.events.step == 1].abs().max()) < 1e-4


@pytest.mark.parametrize("cache", APPROXIMATE)
def test_rows_do_not_depend_on_the_others_through_a_cache(cache):
    model = sharpened()
    settings = {"gen_length": 16, "block_length": 8, "temperature": 1.0, "cache": cache, "sampler": "threshold"}
    settings["threshold"] = 0.01
    together = generate(model, PROMPTS, sample_ids=[5, 6, 7], **settings)
    assert len(set(together.nfe)) > 1, "rows must leave at different times for this to say anything"
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, [prompt], sample_ids=[5 + row], **settings)
        assert alone.completions == [together.completions[row]]
        torch.testing.assert_close(alone.behaviour_logp, together.behaviour_logp[row : row + 1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", [{"sampler": "llada"}, {"sampler": "threshold", "threshold": 0.05}])
@pytest.mark.parametrize("cfg_scale", [0.0, 0.5])
def test_the_block_cache_is_exact(sampler, cfg_scale):
    """Prompts of 5, 1 and 3 tokens with blocks of 4: the first block holds the tail of the prompt."""
    model = tiny_sdar(seed=1)
    settings = {"gen_length": 16, "temperature": 1.0, "cfg_scale": cfg_scale, **sampler}
    plain = generate(model, PROMPTS, **settings)
    cached = generate(model, PROMPTS, cache="block", **settings)
    assert cached.completions == plain.completions
    assert cached.exactness == plain.exactness == "exact_with_F"
    torch.testing.assert_close(cached.events.logp, plain.events.logp, rtol=0, atol=1e-5)
    assert measure_drift(model, cached).largest < 1e-5
