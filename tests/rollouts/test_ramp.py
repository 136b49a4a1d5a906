"""Colours of probabilities read on any ground and without seeing colours."""

from __future__ import annotations

from itertools import pairwise

import pytest

from dllm_rl.rollouts.ramp import BLACK, WHITE, contrast, css, ink, luminance, ramp

STEPS = [ramp(hundredth / 100) for hundredth in range(101)]


def test_the_ends_are_yellow_and_blue() -> None:
    assert css(ramp(0.0)) == "#f5e05d" and css(ramp(1.0)) == "#0f4f95"


def test_lightness_falls_all_the_way_and_evenly() -> None:
    roots = [luminance(colour) ** (1 / 3) for colour in STEPS]  # lightness, nearly
    falls = [before - after for before, after in pairwise(roots)]
    assert min(falls) > 0
    fifths = [sum(falls[start : start + 20]) for start in range(0, 100, 20)]
    assert max(fifths) < 1.2 * min(fifths)


def test_ink_reads_on_every_colour() -> None:
    assert min(contrast(colour, ink(colour)) for colour in STEPS) >= 4.5
    assert ink(STEPS[0]) == BLACK and ink(STEPS[-1]) == WHITE


def test_contrast_is_that_of_wcag() -> None:
    assert contrast(BLACK, WHITE) == contrast(WHITE, BLACK) == pytest.approx(21)
    assert contrast((119, 119, 119), WHITE) == pytest.approx(4.48, abs=0.005)  # the well-known grey that just fails


@pytest.mark.parametrize("wrong", [-0.01, 1.01, float("nan")])
def test_what_is_no_probability_has_no_colour(wrong: float) -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        ramp(wrong)
