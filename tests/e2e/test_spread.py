"""Every launcher file on two processes: what it spreads, that its run is that of one process, what can resume it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dllm_rl
from dllm_rl.models.export import export_merged, export_official
from dllm_rl.toys.families import tiny_llada2
from dllm_rl.toys.model import build
from dllm_rl.toys.tokenizer import character_tokenizer
from tests.e2e import runs

pytestmark = pytest.mark.slow
FILES = runs.ROOT / "recipes/accelerate"
LORA = {"r": 4, "lora_alpha": 8}
KL = {"kl_coefficient": 0.1}  # so that there is a reference: the adapter off, or a frozen copy
ALGORITHMS: dict[str, dict[str, Any]] = {
    "vrpo": {"type": "vrpo", "num_draws": 3},
    "diffu_grpo": {"type": "diffu_grpo", **KL},
    "cj_grpo": {"type": "cj_grpo", "updates_per_rollout": 5, "reduction": "token", **KL},
}
RUNS = [f"{algorithm}-{kind}" for algorithm in ALGORITHMS for kind in ("full", "lora")]
HEADS = ["dultra-full", "tied-full", "tied-lora", "moe-full"]
"""Networks of other shapes: a planner, whose weights are no layer's; one matrix at both ends; buffers with weights."""
RESUMED = ["diffu_grpo-full", "vrpo-lora"]
CHECKPOINTED = ("vrpo-lora", "diffu_grpo-full", "cj_grpo-lora", "tied-full")
"""With activations computed again in the backward, of every group of views."""
CLIP = 1e-3
"""Below every gradient's norm here, so that every update is clipped."""
ROUNDED = ["vrpo-bf16", "diffu_grpo-bf16"]
WHOLE, HALF = 1.0, 0.5
SPREAD = {  # share of the trained weights, of the frozen copy and of the optimiser's state on each process
    "ddp": (WHOLE, WHOLE, WHOLE),
    "zero1": (WHOLE, WHOLE, HALF),
    "zero2": (WHOLE, WHOLE, HALF),
    "zero3": (HALF, HALF, HALF),
    "zero3_offload": (HALF, HALF, HALF),
    "fsdp2": (HALF, HALF, HALF),
}
HARDEST = ("zero3", "fsdp2")


class Bench:
    """One folder in which launches follow each other, each of many recipes."""

    def __init__(self, folder: Path) -> None:
        self.folder = runs.workshop(folder)
        tied: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        tied |= {"max_position_embeddings": 64, "rope_theta": 500000.0, "weight_tying": True}
        build("LLaDAModelLM", tied, character_tokenizer(), seed=1).save(self.folder / "tied")
        tiny_llada2().save(self.folder / "moe")
        self.launched: set[str] = set()

    def recipe(self, launch: str, name: str, processes: int, resume: Path | None = None) -> Path:
        """A recipe of a launch; `name` is its algorithm and what is trained. Four prompts an update, whatever."""
        algorithm, kind = name.split("-")
        output = f"{launch}-{name}"
        tree = runs.recipe(
            self.folder,
            {"type": "dultra"} if algorithm == "dultra" else ALGORITHMS.get(algorithm, ALGORITHMS["vrpo"]),
            output,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=2 // processes,
            views_per_forward=5,
            max_grad_norm=CLIP,
            gradient_checkpointing=name in CHECKPOINTED,
            save_steps=5 if algorithm in ("cj_grpo", "dultra") else 2,
        )
        if kind == "bf16":
            tree["train"]["bf16"] = True
        if kind == "lora":
            tree["model"]["lora"] = LORA
        if algorithm in ("tied", "moe"):
            tree["model"]["path"] = str(self.folder / algorithm)
        if resume is not None:
            tree["train"]["resume_from_checkpoint"] = str(resume)
        if "reward" in tree:  # every run keeps its own record of rollouts
            reward = self.folder / f"{output}-reward"
            reward.mkdir()
            (reward / "reward.py").write_text(runs.REWARD)
            tree["reward"]["functions"] = [f"{reward / 'reward.py'}:digits"]
        return runs.write(self.folder, tree, output)

    def launch(self, launcher: list[str], recipes: list[Path]) -> None:
        done = runs.run([*runs.ACCELERATE, *launcher, "-m", "tests.e2e.spread_each", *map(str, recipes)])
        assert done.returncode == 0, done.stderr[-5000:]

    def once(self, launch: str) -> None:
        """Make the runs of a launch, with two that go on from the middle, unless they are there."""
        if launch in self.launched:
            return
        self.launched.add(launch)
        if launch == "one":
            self.launch(runs.ONE_PROCESS, [self.recipe("one", name, 1) for name in [*RUNS, *HEADS]])
            return
        self.once("one")
        source = "one" if launch == "ddp" else launch  # two processes go on from one, or from themselves
        recipes = [self.recipe(launch, name, 2) for name in [*RUNS, *(HEADS if launch in HARDEST else [])]]
        recipes += [self.recipe(launch, name, 2) for name in ROUNDED if launch in ("ddp", "fsdp2")]
        recipes += [self.recipe(f"{launch}-again", name, 2, self.checkpoint(source, name)) for name in RESUMED]
        self.launch(["--config_file", str(FILES / f"{launch}.yaml"), "--num_processes", "2"], recipes)

    def checkpoint(self, launch: str, name: str) -> Path:
        return self.folder / f"{launch}-{name}" / "checkpoint-2"

    def accounts(self, run: str) -> list[dict[str, Any]]:
        return [json.loads((self.folder / run / f"spread-{rank}.json").read_text()) for rank in (0, 1)]

    def rollouts(self, run: str) -> list[str]:
        files = sorted((self.folder / f"{run}-reward").glob("rollouts-*.jsonl"))
        return sorted(line for file in files for line in file.read_text().splitlines())

    def compare(self, launch: str, name: str, bound: float) -> None:
        """Rollouts are those of one process, to the letter; weights and every logged number are within the bound."""
        one, other = self.folder / f"one-{name}", self.folder / f"{launch}-{name}"
        whole, lines = runs.metrics(one), runs.metrics(other)
        if len(lines) == len(whole):
            assert self.rollouts(f"{launch}-{name}") == self.rollouts(f"one-{name}")
        apart = runs.distance(runs.weights(one), runs.weights(other))
        print(f"{launch} {name}: relative L2 {apart:.1e}")
        assert apart <= bound, (launch, name, apart)
        assert len(lines) in (3, 5)  # after a resume, of what was left
        for wanted, found in zip(whole[-len(lines) :], lines, strict=True):
            assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6), (launch, name)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("spread"))


@pytest.mark.parametrize("file", SPREAD)
def test_two_processes_give_the_run_of_one(bench: Bench, file: str) -> None:
    if file not in ("ddp", "fsdp2"):
        pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    bench.once(file)
    bound = 1e-6 if file == "ddp" else 1e-5
    for name in [*RUNS, *(HEADS if file in HARDEST else [])]:
        bench.compare(file, name, bound)
        one = json.loads((bench.folder / f"one-{name}" / "spread-0.json").read_text())
        first, second = bench.accounts(f"{file}-{name}")
        for part, share in zip(("weights", "reference", "optimizer"), SPREAD[file], strict=True):
            held = {first[part], second[part]}
            most = 1.15 * share * one[part]  # a head may stay gathered after the last forward without gradient
            assert max(held) <= most, f"{file} {name}: {part} is not spread: {held} of {one[part]}"
        assert first["forwards"] == second["forwards"] or file in ("ddp", "zero1", "zero2"), name
    for name in RESUMED:
        bench.compare(f"{file}-again", name, bound)
    for kind in ("full", "lora"):
        first_loss = next(line["loss"] for line in runs.metrics(bench.folder / f"{file}-vrpo-{kind}") if "loss" in line)
        assert first_loss == pytest.approx(math.log(2), abs=1e-6)


def test_every_update_was_clipped(bench: Bench) -> None:
    """Else the comparison above would say nothing of clipping by the norm over all processes."""
    bench.once("one")
    for name in RUNS:
        norms = [line["grad_norm"] for line in runs.metrics(bench.folder / f"one-{name}") if "grad_norm" in line]
        assert len(norms) == 5 and min(norms) > CLIP, (name, norms)


def test_fsdp_rounds_what_ddp_rounds_and_no_more(bench: Bench) -> None:
    """In bfloat16 too: accelerate's own policy would round temperatures, planners and log-probabilities."""
    bench.once("ddp")
    bench.once("fsdp2")
    for name in ROUNDED:
        ddp, fsdp = (bench.folder / f"{launch}-{name}" for launch in ("ddp", "fsdp2"))
        assert runs.distance(runs.weights(ddp), runs.weights(fsdp)) <= 1e-6
        for wanted, found in zip(runs.metrics(ddp), runs.metrics(fsdp), strict=True):
            assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6), name
    ratios = [line["policy/ratio"] for line in runs.metrics(fsdp) if "loss" in line]
    assert ratios == [1.0] * 5


def test_one_process_goes_on_from_two_or_says_why_not(bench: Bench) -> None:
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    for launch in ("ddp", "zero3", "fsdp2"):
        bench.once(launch)
    recipes = {
        (launch, name): bench.recipe(f"alone-{launch}", name, 1, bench.checkpoint(launch, name))
        for launch in ("ddp", "zero3", "fsdp2")
        for name in RESUMED
    }
    fewer = json.loads(recipes["ddp", "vrpo-lora"].read_text().removeprefix("---\n"))
    fewer["train"]["per_device_train_batch_size"] = 1
    fewer["output"] = str(bench.folder / "fewer")
    bench.launch(runs.ONE_PROCESS, [*recipes.values(), runs.write(bench.folder, fewer, "fewer")])
    for (launch, name), path in recipes.items():
        if launch == "ddp":
            bench.compare("alone-ddp", name, 1e-6)
            continue
        error = path.with_suffix(".error").read_text()
        assert f"kept as {launch} by 2 processes and this run keeps it as whole in 1" in error and "\n" not in error
        assert not (bench.folder / f"alone-{launch}-{name}" / "final").exists()
    assert "its updates saw 4 rows each and this run's would see 2" in (bench.folder / "fewer.error").read_text()
    solo = [bench.recipe("solo-fsdp2", name, 1, bench.checkpoint("fsdp2", name)) for name in RESUMED]
    bench.launch(["--config_file", str(FILES / "fsdp2.yaml"), "--num_processes", "1"], solo)
    for name in RESUMED:
        bench.compare("solo-fsdp2", name, 1e-5)


@pytest.mark.parametrize("file", HARDEST)
def test_what_was_spread_is_exported_like_any_other(bench: Bench, file: str, tmp_path: Path) -> None:
    bench.once(file)
    for name in ("vrpo-full", "vrpo-lora"):
        export_official(bench.folder / f"{file}-{name}", tmp_path / name)
        export_official(bench.folder / f"one-{name}", tmp_path / f"one-{name}")
        (out,), (wanted,) = (
            sorted(folder.glob("*model.safetensors")) for folder in (tmp_path / name, tmp_path / f"one-{name}")
        )
        assert runs.distance(load_file(wanted), load_file(out)) <= 1e-5
    export_merged(bench.folder / f"{file}-vrpo-lora", tmp_path / "merged")
    tokens = torch.tensor([[40, 41, 42]])
    one, *others = (bench.folder / "one-vrpo-lora", bench.folder / f"{file}-vrpo-lora", tmp_path / "merged")
    for other in others:
        torch.testing.assert_close(
            dllm_rl.load_model(other).logits(tokens), dllm_rl.load_model(one).logits(tokens), rtol=1e-5, atol=1e-5
        )


def test_fsdp_on_cpus_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = runs.workshop(tmp_path)
    path = runs.write(folder, runs.recipe(folder, ALGORITHMS["vrpo"], "never"))
    done = runs.launch(path, launcher=["--config_file", str(FILES / "fsdp2.yaml"), "--num_processes", "2"])
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("dllm-rl:")]
    assert said and all("accelerate does not shard on CPUs" in line for line in said)
    assert not (folder / "never" / "metrics.jsonl").exists()
