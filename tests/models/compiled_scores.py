"""Compiled, scores and their gradients are the same, and so are the names that are saved.

By itself, since the checks of shapes that tests run under cannot be traced. Backend `eager`: all of compiling but the
compiler.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch._dynamo.utils import counters

from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.toys.families import tiny_sdar
from dllm_rl.toys.model import tiny_llada


def canvases(shared: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Of different sizes, and what is asked of them; after equal prompts or not."""
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, 90, (3 + shared * seed, 10 + seed), generator=generator)
        where = torch.rand(ids.shape, generator=generator) < 0.5
        if shared:
            prompts = ids[: 1 + seed % 3].repeat(len(ids), 3 + seed)[: len(ids)]
            ids, where = torch.cat([prompts, ids], 1), torch.cat([torch.zeros_like(prompts).bool(), where], 1)
        yield ids, where


def compiled_as(model: DiffusionModel) -> DiffusionModel:
    return model.with_network(torch.compile(model.network, backend="eager"))


def compare(model: DiffusionModel, compiled: DiffusionModel, shared: bool) -> None:
    counters.clear()
    for ids, where in canvases(shared):
        found = []
        for each in (model, compiled):
            model.network.zero_grad()
            scores = each.token_logp(ids, ids, where)
            scores.sum().backward()
            found.append([scores.detach(), *(p.grad.clone() for p in model.network.parameters())])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    assert 0 < graphs <= 2 and breaks == 0, f"{graphs} graphs and {breaks} breaks for canvases of four sizes"


def main(folder: Path) -> None:
    block_causal = tiny_sdar(num_hidden_layers=1)
    compare(block_causal, compiled_as(block_causal), shared=True)
    model = tiny_llada(layers=1)
    compiled = compiled_as(model)
    compare(model, compiled, shared=False)
    saved = []
    for name, each in (("plain", model), ("compiled", compiled)):
        each.save(folder / name)
        with safe_open(folder / name / "model.safetensors", framework="pt") as tensors:
            saved.append(sorted(tensors.keys()))
    assert saved[0] == saved[1]
    print("the same")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
