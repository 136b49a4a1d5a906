"""Decoding with LLaDA's vocabulary of 126,464: seconds and peak memory of preset "llada" against the plain loop.

    python benchmarks/vocabulary.py            # about three minutes on two CPU cores; Linux, for the peak memory

A random LLaDA of small width, temperature 1, blocks of 32, 256 new tokens, the same law for both. Each side runs in a
process of its own after a short warm-up; the peak is of resident memory above what stood before. The plain loop makes
fewer steps, since its forwards all cost the same: what is compared is time per forward.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
STEPS = {"dllm_rl": 64, "reference": 8}


def _status(field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def side(name: str) -> dict[str, float]:
    """Time and memory of one side, in this process."""
    from benchmarks.reference import reference_generate
    from dllm_rl import generate
    from dllm_rl.models.denoiser import DiffusionModel
    from dllm_rl.models.llada import LladaConfig, LLaDAModelLM
    from dllm_rl.models.spec import spec_of

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LladaConfig(**shape, vocab_size=126464, max_position_embeddings=1024)
    network = LLaDAModelLM(config).eval()
    with torch.no_grad():
        network.lm_head.weight.mul_(20)  # a fresh head is uniform
    model = DiffusionModel(network, spec_of(config, None))
    prompt = torch.randint(0, 120_000, (1, 64))

    def ours(length: int, steps: int) -> None:
        generate(model, prompt.tolist(), gen_length=length, block_length=min(32, length), steps=steps, temperature=1.0)

    def theirs(length: int, steps: int) -> None:
        reference_generate(
            network,
            prompt,
            steps=steps,
            gen_length=length,
            block_length=min(32, length),
            temperature=1.0,
            mask_id=model.spec.mask_id,
        )

    run: Callable[[int, int], None] = {"dllm_rl": ours, "reference": theirs}[name]
    run(1, 1)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before, start = _status("VmRSS"), time.perf_counter()
    run(256, STEPS[name])
    return {"seconds_per_forward": (time.perf_counter() - start) / STEPS[name], "peak_mb": _status("VmHWM") - before}


def main() -> None:
    """Measure both sides in turn, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=sorted(STEPS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(side(arguments.side)))
        return
    found = {}
    for name in ("reference", "dllm_rl"):
        command = [sys.executable, __file__, "--side", name]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        found[name] = json.loads(lines[-1])
    plain, ours = found["reference"], found["dllm_rl"]
    facts = {
        "command": "python benchmarks/vocabulary.py",
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}, shared",
        **found,
        "times_faster": plain["seconds_per_forward"] / ours["seconds_per_forward"],
        "share_of_peak_memory": ours["peak_mb"] / plain["peak_mb"],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "vocabulary.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print("| | seconds per forward | peak MB above the weights |")
    print("|---|---|---|")
    for name, line in found.items():
        print(f"| {name} | {line['seconds_per_forward']:.3f} | {line['peak_mb']:.0f} |")
    print(f"{facts['times_faster']:.1f} times faster, {facts['share_of_peak_memory']:.3f} of the peak memory")


if __name__ == "__main__":
    main()
