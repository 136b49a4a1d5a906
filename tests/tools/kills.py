"""Ends runs at random moments, lets them go on, and compares what they end with to runs that nobody disturbed.

    python -m tests.tools.kills [--kills 30] [--launched 6] [--seed 0] [--out benchmarks/results/endurance.json]

Each row is one kill: what was sent to whom at which moment, after which update it came, which checkpoints were whole
then, where the run went on from, and how far its weights are from the undisturbed ones. A run must go on from the
newest checkpoint that was whole when it was killed; on one process it must end bit for bit where the undisturbed run
ends: weights, optimiser, scheduler, random states and metrics. On two, relative L2 of all weights is at most 1e-6.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.e2e import runs
from tests.tools import forked
from tests.tools.forked import Job, Moment
from tests.tools.launched import launch

UPDATES, EVERY = 6, 2
STOPPED = 75
BOUND = {1: 0.0, 2: 1e-6}
"""Relative L2 distance of all weights, by processes."""
ALGORITHMS: dict[str, dict[str, Any]] = {
    "diffu_grpo": {"type": "diffu_grpo", "updates_per_rollout": 2},
    "vrpo": {"type": "vrpo", "num_draws": 2},
    "cj_grpo": {"type": "cj_grpo", "updates_per_rollout": 2, "reduction": "token"},
}
REWARD = '''
import random, sys
import numpy, torch

def noisy(completions, **columns):
    """Share of digits, and noise from every global generator, which a resumed run must find where it left them."""
    sys.audit("kills.reward")
    noise = random.random() + numpy.random.rand() + float(torch.rand(()))
    return [sum(c.isdigit() for c in text) / 8 + noise * len(text) / 100 for text in completions]
'''


@dataclass(frozen=True)
class Setting:
    """A kind of run."""

    algorithm: str
    lora: bool
    processes: int = 1

    @property
    def name(self) -> str:
        return f"{self.algorithm}-{'lora' if self.lora else 'full'}-{self.processes}"


@dataclass
class Row:
    """One kill."""

    algorithm: str
    weights: str
    processes: int
    door: str
    """fork: a forked child that runs the command line; launch: accelerate launch; run: dllm-rl run."""
    signal: str
    to: str
    moment: str
    damaged: str
    """A file of the newest whole checkpoint in which a bit was changed after the kill; empty: none was."""
    update_at_kill: int
    whole_at_kill: int
    """Update of the newest checkpoint that was whole before the run was started again; 0: none was."""
    resumed_from: int
    updates_made_again: int
    exit_codes: list[int]
    distance: float
    """Relative L2 of all weights, to the undisturbed run."""
    same_bits: bool
    """Weights, optimiser, scheduler, random states and metrics are equal, bit for bit."""
    verdict: str = "ok"


class Workshop:
    """Recipes, undisturbed runs and disturbed ones, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = runs.workshop(folder)
        (folder / "reward.py").write_text(REWARD)
        self.tallies: dict[Setting, dict[str, int]] = {}

    def recipe(self, setting: Setting, output: str) -> Path:
        tree = runs.recipe(
            self.folder,
            ALGORITHMS[setting.algorithm],
            output,
            max_steps=UPDATES,
            save_steps=EVERY,
            save_total_limit=2,
            per_device_train_batch_size=4 // setting.processes,
        )
        if "reward" in tree:
            tree["reward"] = {"functions": [f"{self.folder / 'reward.py'}:noisy"]}
            tree["eval"] = {"tasks": ["arithmetic"], "every": 2, "gen_length": 5, "limit": 6, "batch_size": 6}
        if setting.lora:
            tree["model"]["lora"] = {"r": 4, "lora_alpha": 8}
        return runs.write(self.folder, tree, output)

    def undisturbed(self, setting: Setting) -> Path:
        """Output of the undisturbed run, made once."""
        output = self.folder / f"whole-{setting.name}"
        if setting not in self.tallies:
            codes, log = self.run(setting, output.name)
            assert codes == [0] * setting.processes, log.read_text()[-3000:]
            self.tallies[setting] = json.loads(log.with_suffix(".json").read_text())
        return output

    def start(self, setting: Setting, output: str, moment: Moment | None = None) -> Job:
        log = self.folder / f"{output}-{'resumed' if (self.folder / output).exists() else 'first'}.log"
        path = self.recipe(setting, output)
        return forked.start(path, self.folder / output, log, setting.processes, moment)

    def run(self, setting: Setting, output: str) -> tuple[list[int], Path]:
        job = self.start(setting, output)
        return job.wait(), job.log


@dataclass(frozen=True)
class Kill:
    """What to do to which run."""

    setting: Setting
    moment: Moment
    door: str = "fork"
    damage: bool = False
    """Change a bit in the newest whole checkpoint, so that the one before must be used."""


def perform(shop: Workshop, number: int, kill: Kill) -> Row | None:
    """Start a run, end it at the moment, let it go on; None if it had ended before."""
    whole = shop.undisturbed(kill.setting)
    output = shop.folder / f"killed-{number}"
    if kill.door == "fork":
        job = shop.start(kill.setting, output.name, kill.moment)
        came = job.interrupt(kill.moment)
        codes = job.wait()
    else:
        came, codes = launch(kill.door, kill.setting.processes, shop.recipe(kill.setting, output.name), kill.moment)
    if not came:
        shutil.rmtree(output)
        return None
    damaged = damage(output, newest_whole(output), number) if kill.damage else ""
    at, newest = last_update(output), newest_whole(output)
    ended, log = shop.run(kill.setting, output.name)
    said = log.read_text()
    assert ended == [0] * kill.setting.processes, said[-3000:]
    row = Row(
        algorithm=kill.setting.algorithm,
        weights="LoRA" if kill.setting.lora else "full",
        processes=kill.setting.processes,
        door=kill.door,
        signal=kill.moment.signal.name,
        to=_victim(kill),
        moment=str(kill.moment),
        damaged=damaged,
        update_at_kill=at,
        whole_at_kill=newest,
        resumed_from=_resumed_from(said),
        updates_made_again=at - _resumed_from(said),
        exit_codes=codes,
        distance=runs.distance(runs.weights(whole), runs.weights(output)),
        same_bits=same_bits(whole, output),
    )
    row.verdict = judge(row)
    shutil.rmtree(output)
    return row


def judge(row: Row) -> str:
    """What a row must show."""
    if row.resumed_from != row.whole_at_kill:
        return f"went on from {row.resumed_from}, not from {row.whole_at_kill}"
    if row.distance > BOUND[row.processes] or (row.processes == 1 and not row.same_bits):
        return "ends elsewhere"
    if row.signal != "SIGKILL" and not row.damaged and row.updates_made_again > 0:
        return "a polite signal cost updates"
    if row.signal != "SIGKILL" and row.door != "launch" and row.update_at_kill and set(row.exit_codes) - {STOPPED, 0}:
        return f"exit codes {row.exit_codes}, not {STOPPED}"
    return "ok"


def _victim(kill: Kill) -> str:
    if kill.door == "launch" and kill.moment.kind == "launcher":
        return "launcher"
    if kill.setting.processes == 1:
        return "the process"
    return "both ranks" if kill.moment.everyone else f"rank {kill.moment.rank} of 2"


def last_update(output: Path) -> int:
    """The last update whose line was written."""
    lines = (output / "metrics.jsonl").read_text().splitlines() if (output / "metrics.jsonl").exists() else []
    return max((json.loads(line)["update"] for line in lines if line.endswith("}")), default=0)


def damage(output: Path, update: int, number: int) -> str:
    """Change one bit of a file of a checkpoint."""
    folder = output / f"checkpoint-{update}"
    if not folder.is_dir():
        return ""
    name = sorted(json.loads((folder / "manifest.json").read_text())["files"])[number % 7]
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    return f"{folder.name}/{name}"


def newest_whole(output: Path) -> int:
    """By hand, not by the code under test: every file of the manifest is there with its hash."""
    found = [0]
    for folder in output.glob("checkpoint-*"):
        if (folder / "manifest.json").exists():
            files = json.loads((folder / "manifest.json").read_text())["files"]
            if all(
                (folder / name).is_file() and hashlib.sha256((folder / name).read_bytes()).hexdigest() == kept["sha256"]
                for name, kept in files.items()
            ):
                found.append(int(folder.name.rpartition("-")[2]))
    return max(found)


def _resumed_from(said: str) -> int:
    lines = [line for line in said.splitlines() if line.startswith("resuming ") and " from update " in line]
    return int(lines[-1].rpartition(" ")[2]) if lines else 0


def same_bits(whole: Path, output: Path) -> bool:
    """Whether all that a run keeps is equal."""
    import torch

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(equal, a, b))
        return bool((a == b).all()) if hasattr(a, "dtype") else bool(a == b)

    ours, theirs = (folder / f"checkpoint-{UPDATES}" for folder in (output, whole))
    names = sorted(file.name for file in theirs.glob("*.pt*"))
    kept = all(equal(*(torch.load(folder / name, weights_only=False) for folder in (ours, theirs))) for name in names)
    return kept and equal(runs.weights(whole), runs.weights(output)) and runs.metrics(whole) == runs.metrics(output)


def plan(shop: Workshop, seed: int) -> Iterator[Kill]:
    """Kills without end: every setting in turn, and for each a kind of moment, a signal and a victim drawn by seed.

    After every fourth one a bit of the newest whole checkpoint, if there is one, is changed.
    """
    chance = random.Random(seed)
    for number, setting in enumerate(itertools.cycle(SETTINGS)):
        shop.undisturbed(setting)
        yield Kill(setting, _moment(chance, setting, shop.tallies[setting]), damage=number % 4 == 3)


def _moment(chance: random.Random, setting: Setting, tally: dict[str, int]) -> Moment:
    kinds = ["forward", "write", "save", "save", "reward" if tally.get("reward") else "forward", "final"]
    kind = chance.choice(kinds)
    within = chance.uniform(0.001, 0.08 if kind in ("save", "final") else 0.3)
    delay = within if kind in ("save", "final") else chance.choice([0.0, within])
    everyone = setting.processes == 2 and chance.random() < 0.25
    rank = 0 if kind in ("write", "save", "final") else chance.randrange(setting.processes)
    number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    return Moment(kind, chance.randint(1, tally[kind]), delay, number, rank, everyone)


SETTINGS = (
    Setting("diffu_grpo", lora=False),
    Setting("vrpo", lora=True, processes=2),
    Setting("cj_grpo", lora=True),
    Setting("diffu_grpo", lora=False, processes=2),
    Setting("vrpo", lora=False),
    Setting("cj_grpo", lora=True, processes=2),
    Setting("diffu_grpo", lora=True),
    Setting("vrpo", lora=True),
    Setting("cj_grpo", lora=False),
)
LAUNCHED = (
    Kill(Setting("diffu_grpo", False), Moment("launcher", 3, 0.0, signal.SIGTERM), "launch"),
    Kill(Setting("vrpo", False), Moment("process", 3, 0.1, signal.SIGKILL), "launch"),
    Kill(Setting("cj_grpo", True), Moment("process", 2, 0.0, signal.SIGINT), "run"),
    Kill(Setting("diffu_grpo", False, 2), Moment("launcher", 3, 0.0, signal.SIGTERM), "launch"),
    Kill(Setting("cj_grpo", True, 2), Moment("process", 3, 0.1, signal.SIGKILL, rank=1), "launch"),
    Kill(Setting("vrpo", True, 2), Moment("process", 2, 0.0, signal.SIGTERM, rank=1), "launch"),
)
"""Through the real command line: after the line of an update, to the launcher or to a process that it started."""


def show(number: int, row: Row) -> str:
    place = f"{row.algorithm} {row.weights} x{row.processes} {row.door}"
    return (
        f"{number:>3}  {place:<30} {row.signal:<8} {row.to:<12} {row.moment:<20} after {row.update_at_kill}, whole "
        f"{row.whole_at_kill}, on from {row.resumed_from}  distance {row.distance:.1e}  {row.damaged} {row.verdict}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--launched", type=int, default=len(LAUNCHED), help="how many of them by the command line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    forked.import_everything()
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        shop = Workshop(Path(folder))
        drawn = plan(shop, arguments.seed)
        todo = list(LAUNCHED[: arguments.launched])
        while len(rows) < arguments.kills:
            kill = todo.pop() if todo and arguments.kills - len(rows) <= len(todo) else next(drawn)
            if (row := perform(shop, len(rows), kill)) is not None:
                rows.append(row)
                print(show(len(rows), row), flush=True)
    failed = [row for row in rows if row.verdict != "ok"]
    print(f"{len(rows)} kills, {len(failed)} failed, {time.monotonic() - began:.0f} s")
    if arguments.out is not None:
        write(arguments.out, rows, arguments.seed)
    return 1 if failed else 0


def write(path: Path, rows: Sequence[Row], seed: int) -> None:
    result = {
        "command": f"python -m tests.tools.kills --kills {len(rows)} --seed {seed}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} shared CPU cores, no GPU",
        "updates": UPDATES,
        "save_steps": EVERY,
        "failed": sum(row.verdict != "ok" for row in rows),
        "greatest_distance": {str(n): max((r.distance for r in rows if r.processes == n), default=0.0) for n in BOUND},
        "kills": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
