"""Every preset on the quickstart's model and task: accuracy against forwards. One table, one JSON, one PNG.

    python benchmarks/decode.py                # after `make .venv`; about two minutes on two CPU cores

The model is the trained one of `make quickstart` if `--model` names it, else its starting weights. Answers have four
digits and an end of sequence, so the differences between rules are small in number and clear in kind. Drift is measured
where a token stands when it is drawn; at temperature 0 the likelihood is "none" everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dllm_rl
from dllm_rl.rollouts.text import decode_until_eos, encode_prompt
from dllm_rl.samplers.drift import measure_drift
from dllm_rl.samplers.position_aware import Background
from dllm_rl.toys import arithmetic

ROOT = Path(__file__).resolve().parents[1]
WAYS: dict[str, dict[str, Any]] = {
    "llada": {},
    "llada, 2 steps": {"sampler": "llada", "steps": 2},
    "llada, 1 step": {"sampler": "llada", "steps": 1},
    "llada, prefix cache": {"sampler": "llada", "cache": "prefix"},
    "llada, dual cache": {"sampler": "llada", "cache": "dual"},
    "llada, dkv cache": {"sampler": "llada", "cache": "dkv"},
    "llada, vicinity cache": {"sampler": "llada", "cache": "vicinity"},
    "rl": {},
    "margin": {},
    "entropy": {},
    "first_hitting": {"temperature": 1.0},
    "ancestral": {"temperature": 1.0},
    "maskgit, 3 steps": {"sampler": "maskgit", "steps": 3},
    "dream": {"temperature": 0.2, "top_p": 0.95},
    "eoser": {},
    "ass": {},
    "eoser_ass": {},
    "pc": {"lambd": 0.25},
    "pc_linear": {},
    "threshold": {},
    "threshold 0.6": {"sampler": "threshold", "threshold": 0.6},
    "factor": {},
    "eb": {},
    "eb, gamma 0.1": {"sampler": "eb", "gamma": 0.1},
    "klass": {},
    "localleap": {},
    "dus": {},
    "sdar": {},
    "rcr": {},
    "rcr, 3 steps": {"sampler": "rcr", "steps": 3},
    "remedi, by logits": {"sampler": "remedi", "order": "logit"},
    "remdm": {"temperature": 1.0},
    "remdm_llada": {"remask_k": 1, "loop_steps": 2},
    "wino": {},
    "t2t": {},
}
"""The planner's presets need a model with a planner head, which the quickstart's has not."""


def background(model: dllm_rl.DiffusionModel) -> Background:
    """How often each token stands in the answers of other problems."""
    answers = [row["answer"] for row in arithmetic.rows("train", count=2000)]
    counts = Counter(token for answer in answers for token in encode_prompt(model.tokenizer, answer))
    return Background.from_counts(counts, counts.total())


def measure(
    model: dllm_rl.DiffusionModel, name: str, way: dict[str, Any], rows: list[dict[str, str]]
) -> dict[str, Any]:
    """One line of the table."""
    settings: dict[str, Any] = {"sampler": name, "gen_length": 5, **way}
    if name.startswith("pc"):
        settings["background"] = background(model)
    prompts = [encode_prompt(model.tokenizer, row["prompt"]) for row in rows]
    start = time.perf_counter()
    out = dllm_rl.generate(model, prompts, **settings)
    seconds = time.perf_counter() - start
    decode = decode_until_eos(model)
    right = [decode(ids) == row["answer"] for ids, row in zip(out.completions, rows, strict=True)]
    forwards = sum(out.nfe) / len(rows)
    return {
        "preset": name,
        "settings": way,
        "accuracy": sum(right) / len(rows),
        "forwards": forwards,
        "tokens_per_forward": 5 / forwards,
        "tokens_per_second": 5 * len(rows) / seconds,
        "exactness": out.exactness,
        "drift_nats_per_token": measure_drift(model, out).mean,
    }


LOWEST = 0.82
"""Accuracies below are drawn at the lower edge, with their value."""


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against forwards: every point has the number of its line beside the figure, equal points share one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 6.5), layout="constrained")
    points: dict[tuple[float, float], list[int]] = {}
    for number, line in enumerate(lines, 1):
        x, y = min(line["forwards"], 7.5), max(line["accuracy"], LOWEST)
        near = [p for p in points if abs(p[0] - x) < 0.12 and abs(p[1] - y) < 0.003]
        points.setdefault(near[0] if near else (x, y), []).append(number)
    for (x, y), numbers in points.items():
        axes.plot(x, y, "v" if y == LOWEST else "o", color="tab:blue", markersize=5)
        rows = [", ".join(map(str, numbers[i : i + 4])) for i in range(0, len(numbers), 4)]
        axes.annotate("\n".join(rows), (x, y), xytext=(5, 0), textcoords="offset points", fontsize=8, va="center")
    names = [f"{n:2d} {line['preset']} ({line['accuracy']:.3f})" for n, line in enumerate(lines, 1)]
    axes.text(1.02, 1, "\n".join(names), transform=axes.transAxes, va="top", fontsize=8, linespacing=1.25)
    axes.set_xlim(0.5, 8)
    axes.set_ylim(LOWEST - 0.01, 1.01)
    axes.set_xlabel("forwards per answer (more than 7.5: at the right edge)")
    axes.set_ylabel(f"accuracy (less than {LOWEST}: at the lower edge)")
    axes.set_title("Decoding rules on three-digit addition")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="recipes/weights/arithmetic")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    arguments = parser.parse_args()
    model, rows = dllm_rl.load_model(arguments.model), arithmetic.rows("test", count=arguments.rows)
    lines = [{**measure(model, way.get("sampler", name), way, rows), "preset": name} for name, way in WAYS.items()]
    arguments.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": f"python benchmarks/decode.py --rows {arguments.rows} --model {arguments.model}",
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}, shared; seconds are noisy, the rest is not",
        "lines": lines,
    }
    (arguments.out / "decode.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    draw(lines, arguments.out / "decode.png")
    print(
        "| preset | accuracy | forwards | tokens per forward | tokens per second | likelihood | drift, nats a token |"
    )
    print("|---|---|---|---|---|---|---|")
    for line in lines:
        numbers = f"{line['accuracy']:.3f} | {line['forwards']:.2f} | {line['tokens_per_forward']:.2f}"
        rest = f"{line['tokens_per_second']:.0f} | {line['exactness']} | {line['drift_nats_per_token']:.1e}"
        print(f"| {line['preset']} | {numbers} | {rest} |")


if __name__ == "__main__":
    main()
