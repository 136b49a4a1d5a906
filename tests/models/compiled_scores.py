"""Compiled, scores and their gradients are the same, and so are the names that are saved.

By itself, since the checks of shapes that tests run under cannot be traced. Backend `eager`: all of compiling but the
compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors import safe_open
from torch._dynamo.utils import counters

from dllm_rl.toys.model import tiny_llada


def main(folder: Path) -> None:
    model = tiny_llada(layers=1)
    compiled = model.with_network(torch.compile(model.network, backend="eager"))
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, 90, (3, 10 + seed), generator=generator)
        where = torch.rand(ids.shape, generator=generator) < 0.5
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
    saved = []
    for name, each in (("plain", model), ("compiled", compiled)):
        each.save(folder / name)
        with safe_open(folder / name / "model.safetensors", framework="pt") as tensors:
            saved.append(sorted(tensors.keys()))
    assert saved[0] == saved[1]
    print("the same")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
