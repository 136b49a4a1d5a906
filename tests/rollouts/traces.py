"""Rollouts made by hand, with every kind of event and texts that are trouble."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import torch

from dllm_rl.diffusion.trajectory import Events, Op, Trajectory
from dllm_rl.diffusion.transform import Transform
from dllm_rl.rollouts.trace import SamplerFacts, Trace, token_ids, trace_of

MASK, EOS = 50, 51
TEXTS = {
    0: "</script><script>alert(1)</script>",
    1: "<!--",
    2: "\"quotes\" 'and' `ticks` ${x}",
    3: "\n",
    4: "\u2028",
    5: "{{TRACE}}",
    6: "日本",
    7: "\x1b[2J",
    8: "&amp;",
    9: "\\u003c\\",
    10: " a",
    11: "-->",
    MASK: "<|mdm_mask|>",
    EOS: "<|endoftext|>",
}


def rollout(rows: int = 3, length: int = 12, seed: int = 0) -> Trajectory:
    """Rows of different numbers of forwards in which tokens are given, written, masked again and edited."""
    dice = random.Random(seed)
    log: list[tuple[int, int, int, int, int, float, float, float]] = []
    nfe = []
    for row in range(rows):
        log.append((row, 0, length - 1, Op.FIX, 10, 0.0, math.nan, math.nan))
        hidden, written, step = list(range(length - 1)), [], 0
        while hidden:
            step += 1
            for place in dice.sample(hidden, min(len(hidden), dice.randint(0, 3))):
                hidden.remove(place)
                written.append(place)
                token, logp = dice.choice([*range(12), EOS]), -dice.expovariate(2)
                conf = dice.choice([logp, -math.inf, math.inf])
                log.append((row, step, place, Op.WRITE, token, logp * 0.9, logp, conf))
            if written and dice.random() < 0.4:
                place = written.pop(dice.randrange(len(written)))
                if dice.random() < 0.5:
                    hidden.append(place)
                    log.append((row, step, place, Op.REMASK, MASK, 0.0, math.nan, math.nan))
                else:
                    written.append(place)
                    log.append((row, step, place, Op.EDIT, dice.randrange(12), 0.0, math.nan, math.nan))
        nfe.append(step)
    columns = list(zip(*log, strict=True))
    events = Events(
        *(torch.tensor(column, dtype=torch.int64) for column in columns[:5]),
        *(torch.tensor(column, dtype=torch.float64) for column in columns[5:]),
    )
    return Trajectory(
        prompts=[[10] * (row + 1) for row in range(rows)],
        gen_length=length,
        events=events,
        selection_logp=torch.linspace(-1, 0, rows * max(nfe), dtype=torch.float64).reshape(rows, -1),
        nfe=nfe,
        keys=torch.arange(rows, dtype=torch.int64) * 7 - 2**63,
        transform=Transform(0.7, 0.5, (MASK,), top_p=0.9),
        exactness="exact",
        mask_id=MASK,
        eos_ids=(EOS,),
        update=4,
        entropy=torch.full((rows, max(nfe)), math.nan, dtype=torch.float64),
        block_of=(torch.arange(length) // 4).expand(rows, -1),
        planner_temperature=0.5,
    )


def trace(trajectory: Trajectory, model: str = "some/model", texts: Mapping[int, str] = TEXTS) -> Trace:
    rows = len(trajectory)
    return trace_of(
        trajectory,
        model=model,
        sampler=SamplerFacts(
            name="llada",
            gen_length=trajectory.gen_length,
            steps=None,
            block_length=4,
            temperature=0.7,
            cfg_scale=0.5,
            stop_at_eos=False,
            cache="none",
            options={"remasking": "random"},
        ),
        seed=3,
        prompt_texts=['</title> & "p"'] * rows,
        completions=["text"] * rows,
        texts={token: texts[token] for token in token_ids(trajectory)},
    )
