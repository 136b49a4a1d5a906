"""Exports are read by a transcription of the published model, under its names, with plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from dllm_rl.errors import CheckpointError
from dllm_rl.models import load_model
from dllm_rl.models.export import export_merged, export_official
from dllm_rl.toys.model import write_tiny_llada

from .published import PublishedLLaDA
from .test_lora import perturb

IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny_llada(tmp_path / "base", seed=5)


def published(folder: Path) -> PublishedLLaDA:
    model = PublishedLLaDA(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def test_an_exported_adapter_gives_the_same_logits_on_the_published_model(base: Path, tmp_path: Path) -> None:
    model = perturb(load_model(base, lora={"r": 4}))
    model.save(tmp_path / "adapter")
    export_official(tmp_path / "adapter", tmp_path / "exported")
    plain = PeftModel.from_pretrained(published(base), tmp_path / "exported")
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS), model.logits(IDS), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(plain(IDS), published(base)(IDS), atol=0.1)


def test_exported_modules_are_the_published_ones_without_the_head(base: Path, tmp_path: Path) -> None:
    perturb(load_model(base, lora={"r": 4})).save(tmp_path / "adapter")
    export_official(tmp_path / "adapter", tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "adapter_config.json").read_text())
    expected = {"q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"}
    assert set(config["target_modules"]) == expected
    plain = PeftModel.from_pretrained(published(base), tmp_path / "exported")
    adapted = {name.split(".lora_A")[0] for name, _ in plain.named_parameters() if ".lora_A." in name}
    blocks = {f"base_model.model.model.transformer.blocks.{n}.{leaf}" for n in range(2) for leaf in expected}
    assert adapted == blocks
    ours, theirs = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("adapter", "exported"))
    assert sorted(t.double().sum().item() for t in ours.values()) == sorted(
        t.double().sum().item() for t in theirs.values()
    )


@pytest.mark.parametrize("head", [None, {"type": "planner"}], ids=["plain", "planner"])
def test_a_merged_adapter_is_one_model_with_the_same_logits(
    head: dict[str, str] | None, base: Path, tmp_path: Path
) -> None:
    model = perturb(load_model(base, lora={"r": 4}, head=head))
    model.save(tmp_path / "adapter")
    export_merged(tmp_path / "adapter", tmp_path / "merged")
    merged = load_model(tmp_path / "merged")
    assert not isinstance(merged.network, PeftModel)
    everywhere = torch.ones_like(IDS, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(merged.logits(IDS), model.logits(IDS), atol=1e-5, rtol=1e-5)
        if head is None:
            torch.testing.assert_close(published(tmp_path / "merged")(IDS), model.logits(IDS), atol=1e-5, rtol=1e-5)
        else:
            plans = [each.plan_at(IDS, everywhere)[1] for each in (merged, model)]
            torch.testing.assert_close(*plans, atol=1e-5, rtol=1e-5)


def test_only_an_adapter_is_merged_and_nothing_is_overwritten(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no adapter to merge"):
        export_merged(base, tmp_path / "merged")
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="exists"):
        export_merged(base, tmp_path / "there")


def test_full_weights_export_as_they_are(base: Path, tmp_path: Path) -> None:
    export_official(base, tmp_path / "exported")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "exported"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_what_has_no_published_name_is_refused(base: Path, tmp_path: Path) -> None:
    load_model(base, lora={"r": 4, "rank_pattern": {"q_proj": 2}}).save(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="rank_pattern"):
        export_official(tmp_path / "adapter", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("lora", [None, {"r": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("head", [{"type": "planner"}, {"type": "schedule", "features": 3, "actions": 1}])
def test_a_head_that_the_published_code_would_leave_out_is_refused(lora, head, base: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    load_model(base, head=head, lora=lora).save(tmp_path / "run")
    with pytest.raises(CheckpointError, match=f"decodes with a {head['type']} head, which the published") as error:
        export_official(tmp_path / "run", tmp_path / "exported")
    assert "\n" not in str(error.value) and not (tmp_path / "exported").exists()


def test_an_export_does_not_overwrite(base: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="exists"):
        export_official(base, tmp_path / "there")
