from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dllm_rl.objectives import dpo_loss


def test_losses_and_gradients_of_dpo_on_elbos(shared: Path) -> None:
    cases = json.loads((shared / "golden/vrpo.json").read_text())["loss_cases"]
    assert len(cases) >= 5
    for case in cases:
        chosen, rejected = (torch.tensor(case[f"elbo_theta_{side}"], dtype=torch.float64) for side in "wl")
        reference = [torch.tensor(case[f"elbo_ref_{side}"], dtype=torch.float64) for side in "wl"]
        chosen.requires_grad_()
        rejected.requires_grad_()
        loss = dpo_loss(chosen - rejected, reference[0] - reference[1], beta=case["beta"]).mean()
        loss.backward()
        assert chosen.grad is not None
        assert rejected.grad is not None
        formula = case["formula"]
        assert loss.item() == pytest.approx(formula["loss"], rel=1e-9), case["name"]
        assert chosen.grad.tolist() == pytest.approx(formula["grad_theta_w"], rel=1e-9), case["name"]
        assert rejected.grad.tolist() == pytest.approx(formula["grad_theta_l"], rel=1e-9), case["name"]
