"""PC-Sampler's variant of ReMDM against outputs of the published code, canvas by canvas."""

from __future__ import annotations

import json
from pathlib import Path

from dllm_rl.models import load_model
from dllm_rl.samplers.generate import generate


def test_every_canvas_is_that_of_the_published_sampler(shared: Path):
    golden = json.loads((shared / "golden/samplers.json").read_text())
    model = load_model(shared / "golden/llada_tiny_gqa")
    cases = [case for case in golden["cases"] if case["algo"] == "pcs.generate_with_remdm" and case["stable"]]
    for case in cases:
        (prompt,) = golden["prompts"][case["prompt"]]
        out = generate(model, [prompt], sampler="remdm_llada", confidence="current", **case["settings"])
        canvases = [out.completion_canvas(step)[0].tolist() for step in range(out.num_steps + 1)]
        assert canvases == case["trajectory_row0"], case["settings"]
        assert out.completions[0] == case["ids"][0][len(prompt) :]
        assert out.nfe == [case["forwards"]]
    assert len(cases) == 2
