"""The figure of `estimator.py`: ratios by corruptor, by length and by floor, and shared draws against the KL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHOWN = {
    "fixed count, stratified": "tab:blue",
    "antithetic levels": "tab:cyan",
    "complementary": "tab:green",
    "balanced": "tab:red",
    "Bernoulli, floor 0.001": "tab:gray",
}
"""Corruptors and their colours; independent fixed counts are the line at 1."""


def draw(facts: dict[str, Any], path: Path) -> None:
    """Write the figure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(14, 10), layout="constrained")
    _by_corruptor(axes[0, 0], facts["cases"])
    _by_length(axes[0, 1], facts["lengths"])
    _by_floor(axes[1, 0], facts["cases"])
    _by_kl(axes[1, 1], facts["margins"])
    for each in axes.flat:
        each.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _errors(found: list[dict[str, float]]) -> list[list[float]]:
    return [[each["ratio"] - each["low"] for each in found], [each["high"] - each["ratio"] for each in found]]


def _by_corruptor(axes: Any, cases: list[dict[str, Any]]) -> None:
    for index, (name, color) in enumerate(SHOWN.items()):
        found = [case["corruptors"][name] for case in cases]
        places = [place + 0.16 * (index - 2) for place in range(len(cases))]
        ratios = [each["ratio"] for each in found]
        axes.bar(places, ratios, 0.15, yerr=_errors(found), color=color, label=name, error_kw={"elinewidth": 0.8})
    axes.axhline(1, color="black", linewidth=0.8)
    axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_ylim(0.1, 30)
    axes.set_yticks([0.125, 0.25, 0.5, 1, 2, 4, 8], ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axes.minorticks_off()
    axes.set_xticks(range(len(cases)), [case["case"].replace(", ", "\n") for case in cases], fontsize=8)
    axes.set_ylabel("variance / that of independent fixed counts")
    axes.set_title("Eight forwards each; 95% intervals over problems; dotted: one half")
    axes.legend(fontsize=8, ncols=2)


def _by_length(axes: Any, cases: list[dict[str, Any]]) -> None:
    lengths = [case["tokens"] for case in cases]
    for name, color in SHOWN.items():
        if name.startswith("Bernoulli"):
            continue  # far above; the panel of floors has it
        found = [case["corruptors"][name] for case in cases]
        ratios = [each["ratio"] for each in found]
        axes.errorbar(lengths, ratios, yerr=_errors(found), color=color, label=name, marker="o", capsize=3)
    shares = [case["share_within_counts"] for case in cases]
    axes.plot(
        lengths, shares, "--", color="black", linewidth=1, zorder=5, label="share within counts, independent draws"
    )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xlabel("tokens scored: the last of a column sum's 14")
    axes.set_ylabel("variance / that of independent fixed counts")
    axes.set_ylim(bottom=0)
    axes.set_title("By length of the answer")
    axes.legend(fontsize=8)


def _by_floor(axes: Any, cases: list[dict[str, Any]]) -> None:
    floors = [0.1, 0.01, 0.001, 0.0001]
    for case in cases:
        found = [case["corruptors"][f"Bernoulli, floor {floor:g}"] for floor in floors]
        axes.errorbar(
            floors, [each["ratio"] for each in found], yerr=_errors(found), label=case["case"], marker="o", capsize=3
        )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.invert_xaxis()
    axes.set_xlabel("lowest level of Bernoulli masks (at 0 the variance is infinite)")
    axes.set_ylabel("variance / that of independent fixed counts")
    axes.set_title("Bernoulli masks: straight lines in log(1 / floor)")
    axes.legend(fontsize=8)


def _by_kl(axes: Any, margins: list[dict[str, Any]]) -> None:
    kl = [each["kl"] for each in margins]
    for name, color in (("fixed count, stratified", "tab:blue"), ("balanced", "tab:red")):
        for answers, style in (("sampled", "-"), ("right", "--")):
            found = [each[answers][name] for each in margins]
            axes.errorbar(
                [each["ratio"] for each in kl],
                [each["ratio"] for each in found],
                xerr=_errors(kl),
                yerr=_errors(found),
                color=color,
                linestyle=style,
                marker="o",
                capsize=3,
                label=f"{name}; {answers} answers",
            )
    for index, (each, margin) in enumerate(zip(kl, margins, strict=True)):
        place = (each["ratio"], 1.02 + 0.05 * (index % 3))
        axes.annotate(f"update {margin['update']}", place, fontsize=8, ha="center")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylim(0, 1.2)
    axes.set_xlabel("KL of policy from reference, nats per answer")
    axes.set_ylabel("variance with shared draws / with independent draws")
    axes.set_title("ELBO of policy minus ELBO of reference")
    axes.legend(fontsize=8)
