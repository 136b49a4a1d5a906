"""What benchmarks compare computes the same thing: one loss, one gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import plain_trainer
from benchmarks.cases import SMALL, assert_equal_updates


@pytest.mark.parametrize("method", SMALL)
def test_the_plain_update_is_the_librarys(method: str) -> None:
    assert_equal_updates(SMALL[method])


@pytest.mark.parametrize("method", SMALL)
def test_in_any_grouping(method: str) -> None:
    assert_equal_updates(replace(SMALL[method], views_per_forward=100))


def test_a_difference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_trainer, "KL_COEFFICIENT", 0.05)
    with pytest.raises(AssertionError, match="not close"):
        assert_equal_updates(SMALL["diffu_grpo"])
    monkeypatch.setattr(plain_trainer, "BETA", 0.21)
    with pytest.raises(AssertionError, match="not close"):
        assert_equal_updates(SMALL["vrpo"])
