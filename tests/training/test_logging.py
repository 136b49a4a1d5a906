"""What a run leaves behind: lines that resume cleanly, a curve, a table that survives odd text."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments

from dllm_rl.training.logging import (
    EvaluateEvery,
    MetricsFile,
    accuracy_names,
    draw_curve,
    read_metrics,
    sample_table,
)
from dllm_rl.training.source import Sample


def test_a_resumed_metrics_file_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [{"update": u, "loss": u / 10} for u in (1, 2, 3)]
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"update": 4, "lo')
    assert read_metrics(file) == lines
    MetricsFile(file, resumed_update=2)
    assert read_metrics(file) == lines[:2]
    MetricsFile(file, resumed_update=0)
    assert read_metrics(file) == []


def test_every_log_is_a_line_and_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    writer = MetricsFile(file, 0)
    state = TrainerState(is_world_process_zero=True, global_step=3)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    writer.on_log(arguments, state, TrainerControl(), logs={"reward/mean": 0.5, "x": float("nan"), "epoch": 1.0})
    writer.on_log(arguments, state, TrainerControl(), logs={"train_loss": 0.1, "total_flos": 0.0})
    assert read_metrics(file) == [{"update": 3, "reward/mean": 0.5, "x": None}]


def test_evaluation_is_due_at_multiples_and_at_the_end(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    due = {
        every: [
            step
            for step in range(1, 8)
            if EvaluateEvery(every)
            .on_step_end(arguments, TrainerState(global_step=step, max_steps=7), TrainerControl())
            .should_evaluate
        ]
        for every in (0, 3)
    }
    assert due == {0: [7], 3: [3, 6, 7]}


def test_a_curve_is_drawn_with_and_without_rewards(tmp_path: Path) -> None:
    with_reward = [
        {"update": 0, "eval/sums/accuracy": 0.2},
        {"update": 1, "loss": 0.1, "reward/mean": 0.3},
        {"update": 2, "loss": 0.1, "reward/mean": None},
        {"update": 2, "eval/sums/accuracy": 0.4},
    ]
    assert accuracy_names(with_reward) == ["eval/sums/accuracy"]
    for name, lines in (("a", with_reward), ("b", [{"update": 1, "loss": 0.5}]), ("c", [])):
        draw_curve(lines, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_of_samples_is_text_that_markup_cannot_break() -> None:
    table = sample_table([Sample("1+1=\n[red]", "[/bold] 2", 1.0, -0.25)] * 5)
    assert table.count("[/bold] 2") == 3 and "1+1=\\n[red]" in table and "-0.25" in table
