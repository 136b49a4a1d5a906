"""WINO against its published algorithm, written down again for one row at temperature 0: token for token.

What differs, and cannot show here: the code writes and hides by strict and loose comparisons of its own, breaks ties as
topk does, and may write the mask. It also rounds its cap in float32; see `test_the_cap_is_the_published_one`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dllm_rl.diffusion.trajectory import Op
from dllm_rl.models import DiffusionModel, load_model
from dllm_rl.samplers.generate import generate
from tests.samplers.revision_oracle import Log, logs_of


@pytest.fixture(scope="module")
def model(shared: Path) -> DiffusionModel:
    return load_model(shared / "golden/llada_tiny_gqa")


@torch.no_grad()
def with_shadow(model: DiffusionModel, tokens: list[int], block: range) -> tuple[Tensor, Tensor]:
    """Probabilities of the sequence, and of the masked copies of `block` behind it."""
    n, mask = len(tokens), model.spec.mask_id
    sees = torch.ones(n + len(block), n + len(block), dtype=torch.bool)
    sees[:n, n:] = False
    sees[range(n, n + len(block)), block] = False
    canvas = torch.tensor([[*tokens, *[mask] * len(block)]])
    p = model.logits(canvas, sees[None], torch.tensor([[*range(n), *block]]))[0].double().softmax(-1)
    return p[:n], p[n:]


def decode(
    model: DiffusionModel, prompt: list[int], length: int, block_length: int, accept: float, keep: float
) -> tuple[Log, list[int]]:
    """The published algorithm: what each step wrote and hid, and the text."""
    mask = model.spec.mask_id
    tokens, log = [*prompt, *[mask] * length], []
    for start in range(len(prompt), len(prompt) + length, block_length):
        block = range(start, start + block_length)
        masked, last = set(block), 30
        while masked:
            most = min(max(int(len(masked) * 0.7), 5), 20)
            p, shadow = with_shadow(model, tokens, block)
            p[:, mask], best = -1.0, p.index_fill(1, torch.tensor([mask]), -1.0).argmax(-1).tolist()
            confidence = {i: float(p[i, best[i]]) for i in masked}
            order = sorted(masked, key=lambda i: -confidence[i])
            chosen = [i for i in order if confidence[i] > accept][:most] or order[:1]
            doubted = {j: float(shadow[j - start, tokens[j]]) for j in set(block) - masked}
            back = sorted((j for j, held in doubted.items() if held < keep), key=lambda j: doubted[j])
            if len(chosen) == 1:
                back = []
            elif len(back) >= last:
                back = back[: last - 1]
            for i in chosen:
                tokens[i] = best[i]
            for j in back:
                tokens[j] = mask
            masked, last = masked - set(chosen) | set(back), len(chosen)
            at = len(prompt)
            log.append(
                frozenset(
                    [("WRITE", i - at, tokens[i]) for i in chosen] + [("REMASK", j - at, mask) for j in back],
                )
            )
    return tuple(log), tokens[len(prompt) :]


LONGER = [(0.6, 0.9, 32, 16), (0.4, 0.9, 32, 32), (0.2, 0.1, 40, 40)]
SETTINGS = [(0.4, 0.3, 32, 8), *(pytest.param(*each, marks=pytest.mark.slow) for each in LONGER)]


@pytest.mark.parametrize(("accept", "keep", "length", "block_length"), SETTINGS)
def test_every_step_is_that_of_the_published_algorithm(shared, model, accept, keep, length, block_length):
    prompts = json.loads((shared / "golden/generate.json").read_text())["prompts"]
    texts = [rows[0] for name, rows in prompts.items() if name in ("p1", "p12")]
    out = generate(
        model, texts, sampler="wino", gen_length=length, block_length=block_length, threshold=accept, verify=keep
    )
    assert int((out.events.op == Op.REMASK).sum()) > 10
    for row, (text, log) in enumerate(zip(texts, logs_of(out), strict=True)):
        steps, tokens = decode(model, text, length, block_length, accept, keep)
        assert log == steps, row
        assert out.completions[row] == tokens
