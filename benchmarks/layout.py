"""How the texts of a forward are laid into rows: beginnings run once, and several texts packed into a row.

    OMP_NUM_THREADS=1 python -m benchmarks.layout      # about five minutes of one CPU core

CPU seconds of forward and backward on random models of width 256 and two layers, by turns, medians. Beginnings: an
SDAR, half of each completion hidden; the other side is told the model's own pattern outright, and then no row is cut.
Packing: a LLaDA, texts sorted by length and so many in a forward, against rows as wide as the longest text that hold
as many texts as fit, with a mask between pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import facts, interleaved, options, table, times_faster, write
from dllm_rl.models.attention import AttentionSpec
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.toys.families import tiny_sdar
from dllm_rl.toys.model import tiny_llada

GROUPS = {  # rows, tokens of the prompt, of the completion
    "6 completions of 64 after a prompt of 200": (6, 200, 64),
    "6 completions of 256 after a prompt of 200": (6, 200, 256),
    "6 completions of 64 after a prompt of 800": (6, 800, 64),
    "6 completions of 256 after a prompt of 800": (6, 800, 256),
    "8 views of one text, 200 and 256": (8, 200, 256),
    "8 replayed steps of one text, 200 and 256": (8, 200, 256),
    "4 completions of 32 after a prompt of 1600": (4, 1600, 32),
    "6 completions of 256 after a prompt of 64": (6, 64, 256),
}
SPREADS = {  # texts, shortest and longest prompt, texts in a forward; completions are 20 to 256
    "32 texts, prompts of 30 to 200, 8 a forward": (32, 30, 200, 8),
    "8 texts, prompts of 30 to 200, 8 a forward": (8, 30, 200, 8),
    "8 texts, prompts of 30 to 200, 2 a forward": (8, 30, 200, 2),
    "6 completions of one prompt of 200, 8 a forward": (6, 200, 200, 8),
    "6 completions of one prompt of 30, 8 a forward": (6, 30, 30, 8),
    "6 completions of one prompt of 30, 2 a forward": (6, 30, 30, 2),
}
COMPLETION = (20, 256)
Side = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens, and which of them are hidden and asked about."""

    ids: Tensor
    where: Tensor


def texts(seed: int, model: DiffusionModel, sizes: list[tuple[int, int]], shared: bool) -> list[Text]:
    """Random ones of so many tokens of prompt and completion; after equal prompts or not."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(5, 90, (sizes[0][0],), generator=generator)
    made = []
    for prompt, completion in sizes:
        ids = torch.randint(5, 90, (prompt + completion,), generator=generator)
        if shared:
            ids[:prompt] = first
        where = (torch.rand(len(ids), generator=generator) < 0.5) & (torch.arange(len(ids)) >= prompt)
        made.append(Text(ids.masked_fill(where, model.spec.mask_id), where))
    return made


def replayed(model: DiffusionModel, text: Text, prompt: int, steps: int) -> list[Text]:
    """What a sampler from left to right saw before each step, and what it wrote then."""
    column, each = torch.arange(len(text.ids)) - prompt, (len(text.ids) - prompt) // steps
    return [
        Text(
            text.ids.masked_fill(column >= step * each, model.spec.mask_id),
            column.div(each, rounding_mode="floor") == step,
        )
        for step in range(steps)
    ]


def backward(model: DiffusionModel, rows: list[Text], pattern: bool = False) -> None:
    """One forward and backward, rows padded to the longest."""
    columns = max(len(row.ids) for row in rows)
    canvas = torch.zeros(len(rows), columns, dtype=torch.int64)
    attend, where = torch.zeros_like(canvas).bool(), torch.zeros_like(canvas).bool()
    for number, row in enumerate(rows):
        canvas[number, : len(row.ids)], attend[number, : len(row.ids)] = row.ids, True
        where[number, : len(row.ids)] = row.where
    sees: Any = AttentionSpec("block_causal", model.spec.block_size or 1, attend) if pattern else attend
    model.score(canvas, canvas, where, sees).logp.sum().backward()


def packed(model: DiffusionModel, row_texts: list[list[Text]], columns: int) -> None:
    """One forward and backward of rows that hold several texts, each of which sees itself."""
    canvas = torch.zeros(len(row_texts), columns, dtype=torch.int64)
    owner, positions = torch.full_like(canvas, -1), torch.zeros_like(canvas)
    where = torch.zeros_like(canvas).bool()
    for number, members in enumerate(row_texts):
        at = 0
        for text, row in enumerate(members):
            span = slice(at, at + len(row.ids))
            canvas[number, span], where[number, span], owner[number, span] = row.ids, row.where, text
            positions[number, span] = torch.arange(len(row.ids))
            at += len(row.ids)
    model.network(
        input_ids=canvas,
        attention_mask=(owner[:, :, None] == owner[:, None])[:, None],
        position_ids=positions,
        rows=where.flatten().nonzero()[:, 0],
        tokens=canvas[where],
    ).logp.sum().backward()


def bins(given: list[Text], columns: int) -> list[list[Text]]:
    """Each text, longest first, into the fullest row that it fits into."""
    rows: list[list[Text]] = []
    for text in sorted(given, key=lambda text: -len(text.ids)):
        fits = [row for row in rows if sum(len(each.ids) for each in row) + len(text.ids) <= columns]
        if fits:
            max(fits, key=lambda row: sum(len(each.ids) for each in row)).append(text)
        else:
            rows.append([text])
    return rows


def ratio(model: DiffusionModel, sides: dict[str, Side], repeats: int) -> dict[str, float]:
    """How many times faster the second side is, in CPU time, and seconds of both."""
    for run in sides.values():
        run()
    costs = interleaved(sides, repeats)
    model.network.zero_grad()
    seconds = {name: sorted(each.cpu_seconds for each in found)[len(found) // 2] for name, found in costs.items()}
    return {**seconds, "times_faster": times_faster(*costs.values())["times_faster_cpu"]}


def beginnings(repeats: int, quick: bool) -> dict[str, dict[str, float]]:
    """Rows that begin alike, whole and cut."""
    model = tiny_sdar(
        hidden_size=256, intermediate_size=768, head_dim=64, num_key_value_heads=2, max_position_embeddings=2048
    )
    found = {}
    for name, (rows, prompt, completion) in list(GROUPS.items())[: 1 if quick else None]:
        given = texts(0, model, [(prompt, completion)] * rows, shared=True)
        if "one text" in name:
            given = [Text(torch.where(each.where, each.ids, given[0].ids), each.where) for each in given]
        if "steps" in name:
            given = replayed(model, given[0], prompt, rows)
        sides: dict[str, Side] = {
            "whole": lambda given=given: backward(model, given, pattern=True),  # type: ignore[misc]
            "cut": lambda given=given: backward(model, given),  # type: ignore[misc]
        }
        found[name] = ratio(model, sides, repeats)
    return found


def packing(repeats: int, quick: bool) -> dict[str, dict[str, float]]:
    """Texts of different lengths, sorted and packed; means over four drawings of the lengths."""
    model = tiny_llada(hidden=256, mlp=768)
    found = {}
    for name, (count, low, high, size) in list(SPREADS.items())[-1 if quick else 0 :]:
        runs = []
        for seed in range(1 if quick else 4):
            generator = torch.Generator().manual_seed(seed)
            lengths = [[int(torch.randint(a, b + 1, (1,), generator=generator)) for a, b in ((low, high), COMPLETION)]
                       for _ in range(count)]  # fmt: skip
            given = sorted(texts(seed, model, [(a, b) for a, b in lengths], False), key=lambda text: len(text.ids))
            columns = len(given[-1].ids)
            groups = [given[start : start + size] for start in range(0, count, size)]
            rows = bins(given, columns)
            packs = [rows[start : start + size] for start in range(0, len(rows), size)]
            sides: dict[str, Side] = {
                "sorted": lambda groups=groups: [backward(model, group) for group in groups],  # type: ignore[misc]
                "packed": lambda packs=packs, n=columns: [packed(model, pack, n) for pack in packs],  # type: ignore[misc]
            }
            padding = sum(len(group) * len(group[-1].ids) for group in groups) / sum(len(text.ids) for text in given)
            runs.append({**ratio(model, sides, repeats), "columns_per_token": padding})
        found[name] = {key: mean(run[key] for run in runs) for key in runs[0]}
        found[name]["times_faster_least"] = min(run["times_faster"] for run in runs)
        found[name]["times_faster_most"] = max(run["times_faster"] for run in runs)
    return found


def main() -> None:
    """Measure, write, print."""
    arguments = options(__doc__, "the smallest case of each").parse_args()
    torch.set_num_threads(1)
    about = facts("python -m benchmarks.layout")
    shared = beginnings(arguments.repeats, arguments.quick)
    packs = packing(arguments.repeats, arguments.quick)
    if not arguments.quick:
        write("layout", {**about, "beginnings": shared, "packing": packs}, arguments.out)
    rows = [[name, *(f"{line[key]:.2f}" for key in ("whole", "cut", "times_faster"))] for name, line in shared.items()]
    print(table(["beginnings", "rows whole, CPU s", "beginnings once, CPU s", "times faster"], rows))
    keys = ("columns_per_token", "sorted", "packed", "times_faster", "times_faster_least", "times_faster_most")
    rows = [[name, *(f"{line[key]:.2f}" for key in keys)] for name, line in packs.items()]
    print(
        table(["packing", "columns per token", "sorted, CPU s", "packed, CPU s", "times faster", "least", "most"], rows)
    )


if __name__ == "__main__":
    main()
