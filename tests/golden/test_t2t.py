"""Token-to-token edits against the published rule (SGLang's JointThreshold), written down again for one row: token for
token.

What differs: SGLang's pass after the last that may edit changes nothing and is not made here, and it may put the mask
in place of a token, which cannot show here. Its models are block-causal; the rule asks nothing of the attention.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dllm_rl.diffusion.trajectory import Op
from dllm_rl.models import DiffusionModel, load_model
from dllm_rl.samplers.generate import generate

PUBLISHED = [(0.7, 0.5, 16), (0.5, 0.0, 16), (0.95, 0.9, 16)]
SETTINGS = [(0.3, 0.3, 2), *(pytest.param(*each, marks=pytest.mark.slow) for each in PUBLISHED)]


@pytest.fixture(scope="module")
def model(shared: Path) -> DiffusionModel:
    return load_model(shared / "golden/llada_tiny_gqa")


@torch.no_grad()
def decode(
    model: DiffusionModel, prompt: list[int], length: int, block_length: int, write: float, edit: float, extra: int
) -> tuple[list[int], int, int]:
    """The text, the forwards made, and those of them that did nothing but find the passes used up."""
    mask, forwards, vain = model.spec.mask_id, 0, 0
    x = torch.tensor([*prompt, *[mask] * length])
    for start in range(len(prompt), len(x), block_length):
        block = slice(start, start + block_length)
        passes = 0
        while True:
            full = model.logits(x[None])[0, block].softmax(-1)
            forwards += 1
            new = full.index_fill(-1, torch.tensor([mask]), -1.0).argmax(-1)
            p = full.gather(-1, new[:, None])[:, 0]
            masked = x[block] == mask
            take = masked & (p > write)
            if masked.any() and not take.any():
                take[p.where(masked, -1.0).argmax()] = True
            if not masked.any():
                passes += 1
                if passes > extra:
                    vain += 1
                    break
            take |= ~masked & (p > edit) & (new != x[block])
            if not take.any():
                break
            x[block] = torch.where(take, new, x[block])
    return x[len(prompt) :].tolist(), forwards, vain


@pytest.mark.parametrize(("write", "edit", "extra"), SETTINGS)
def test_the_text_is_that_of_the_published_rule(shared, model, write, edit, extra):
    prompts = json.loads((shared / "golden/generate.json").read_text())["prompts"]
    texts = [rows[0] for name, rows in prompts.items() if name in ("p5", "p12")]
    way = {"gen_length": 16, "block_length": 8, "threshold": write, "edit": edit, "post_steps": extra}
    out = generate(model, texts, sampler="t2t", **way)
    assert int((out.events.op == Op.EDIT).sum()) > 0
    for row, text in enumerate(texts):
        tokens, forwards, vain = decode(model, text, 16, 8, write, edit, extra)
        assert out.completions[row] == tokens, row
        assert out.nfe[row] == forwards - vain
