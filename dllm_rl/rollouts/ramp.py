"""The colour of a probability, the same in the terminal and in the replay."""

from __future__ import annotations

from functools import lru_cache
from math import cos, pi, sin

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255, sRGB."""

_UNSURE = (0.90, 0.15, 100.0)
"""Lightness, chroma and hue of probability 0: yellow."""
_SURE = (0.43, 0.13, 255.0)
"""Of probability 1: blue."""
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)


@lru_cache(maxsize=1024)
def ramp(probability: float) -> Colour:
    """Background of a token written with `probability`, from yellow (0) to blue (1).

    A straight line in OKLab, so equal differences look equally large; lightness falls all the way and the line runs
    from yellow to blue, so it reads without colours and by the colour-blind; with `ink` on it, on any ground.

    Source: Björn Ottosson, "A perceptual color space for image processing", 2020, for OKLab.

    Raises:
        ValueError: not a probability.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"a colour for probability {probability} was asked for; expected 0 to 1")
    low, high = _lab(*_UNSURE), _lab(*_SURE)
    mixed = [start + probability * (end - start) for start, end in zip(low, high, strict=True)]
    red, green, blue = (round(255 * _gamma(part)) for part in _linear(*mixed))
    return red, green, blue


def ink(ground: Colour) -> Colour:
    """Black or white, whichever reads better on `ground`; the contrast is at least 4.5, as WCAG AA asks of text."""
    return BLACK if contrast(ground, BLACK) >= contrast(ground, WHITE) else WHITE


def contrast(one: Colour, other: Colour) -> float:
    """Contrast ratio of WCAG 2, from 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: Colour) -> float:
    """Relative luminance, from 0 to 1."""
    red, green, blue = (_ungamma(part / 255) for part in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def css(colour: Colour) -> str:
    """As a style sheet writes it: #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _lab(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    angle = hue * pi / 180
    return lightness, chroma * cos(angle), chroma * sin(angle)


def _linear(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    """OKLab to linear sRGB."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def _gamma(part: float) -> float:
    return 12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055


def _ungamma(part: float) -> float:
    return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
