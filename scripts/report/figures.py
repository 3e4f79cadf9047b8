"""Curves as inline SVG in the text colour of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..metrics.froc import FALSE_REGION_RATES, sensitivities_at

INK, ACCENT, MUTED = "#010203", "#2f81d0", "#8a8f98"  # INK is replaced by the text colour of the page
STYLE: Any = {
    **{name: INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "lines.linewidth": 1.6,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
}
NOT_IN_HTML = (  # parts of a standalone SVG file
    (r" xmlns(:\w+)?=\"[^\"]*\"", ""),
    (r"xlink:href", "href"),
    (r"<defs>\s*<style.*?</style>\s*</defs>", ""),  # would apply to the whole page
    (r" id=\"[a-z0-9]+_\d+\"", ""),
    (r"font-family: [^;]*; ", ""),
    (r"(\.\d)\d+(?=[^<>]*>)", r"\1"),  # coordinates, not text
    (r"\s*\n\s*", " "),
)
CURVES = {  # title, horizontal and vertical axis of each curve of an evaluation
    "froc": (
        "Lesions found (FROC)",
        ("false_regions_per_case", "false regions per case"),
        ("lesion_sensitivity", "lesion sensitivity"),
    ),
    "roc": ("ROC", ("fpr", "false-positive rate"), ("tpr", "true-positive rate")),
    "pr": ("Precision and recall", ("recall", "recall"), ("precision", "precision")),
    "pro": ("Overlap per region (PRO)", ("fpr", "false-positive rate"), ("pro", "mean overlap")),
    "dice": ("Dice against threshold", ("threshold", "threshold, 1 = decision threshold"), ("dice", "Dice")),
}


def histogram_svg(scores: np.ndarray, normal: np.ndarray, rates: np.ndarray, limits: Mapping[str, float]) -> str:
    """Draw the distribution of the scores of a case and of normal patches.

    Args:
        scores: calibrated scores of the foreground of the case ``[N]``.
        normal: upper quantiles ``[L]`` of the calibrated scores of normal patches.
        rates: fraction of normal patches above each quantile ``[L]``.
        limits: scores that are marked, by name; two at most.

    Returns:
        An ``svg`` element; the vertical axis is logarithmic, because anomalous scores are rare.
    """
    edges = np.linspace(min(scores.min(), 0), max(scores.max(), normal.max(), *limits.values(), 2), 61)
    counts, _ = np.histogram(scores, edges)
    normal, kept = np.unique(normal, return_index=True)
    density = -np.diff(rates[kept]) / np.diff(normal)
    per_tenth = 0.1 / np.diff(edges) / len(scores)

    def draw(axes: Axes) -> None:
        axes.stairs(counts * per_tenth, edges, fill=True, color=ACCENT, alpha=0.55, label="this case, foreground")
        axes.stairs(density * 0.1, normal, baseline=None, color=INK, label="normal patches, upper half", linewidth=1.4)
        for (name, limit), style in zip(limits.items(), ("--", ":"), strict=False):
            axes.axvline(limit, color="#d0582f", linestyle=style, label=f"{name} {limit:g}")
        axes.set_yscale("log")
        axes.set(xlabel="anomaly score, 1 = decision threshold", ylabel="share per 0.1")
        axes.figure.legend(loc="upper left", ncols=2, columnspacing=1.2, frameon=False, fontsize=8)

    return _svg(draw, (4.8, 2.8), left=0.13, right=0.98, bottom=0.17, top=0.82)


def curve_svgs(curves: Mapping[str, Mapping[str, Sequence[Any]]], threshold: float) -> list[str]:
    """Draw the curves of an evaluation.

    Args:
        curves: curves of ``metrics.json``; missing and empty ones are left out.
        threshold: threshold that is marked in the curve of the Dice coefficient.

    Returns:
        An ``svg`` element for each curve.
    """
    drawn = []
    for name, (title, (x, x_label), (y, y_label)) in CURVES.items():
        points = np.array([curves.get(name, {}).get(axis) or [] for axis in (x, y)], dtype=float)
        if not np.isfinite(points).all(0).any():
            continue

        def draw(axes: Axes, name=name, points=points, title=title, labels=(x_label, y_label)) -> None:
            if name == "froc":
                _draw_froc(axes, *points)
            else:
                axes.plot(*points, color=ACCENT)
            if name == "roc":
                axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1)
            if name == "dice":
                axes.axvline(threshold, color="#d0582f", linestyle="--", linewidth=1)
            axes.set(title=title, xlabel=labels[0], ylabel=labels[1], ylim=(-0.02, 1.02))

        drawn.append(_svg(draw, (3.4, 2.9), left=0.16, right=0.97, bottom=0.17, top=0.9))
    return drawn


def _draw_froc(axes: Axes, rates: np.ndarray, sensitivities: np.ndarray) -> None:
    """Draw an FROC curve over the reported rates on a logarithmic axis, with a marker at each."""
    ends = FALSE_REGION_RATES[0], FALSE_REGION_RATES[-1]
    between = np.union1d(FALSE_REGION_RATES, rates[(rates > ends[0]) & (rates < ends[1])])
    axes.plot(between, sensitivities_at(rates, sensitivities, between), color=ACCENT)
    at_rates = sensitivities_at(rates, sensitivities)
    axes.plot(FALSE_REGION_RATES, at_rates, color=ACCENT, linestyle="", marker="o", markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(FALSE_REGION_RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])


def _svg(draw: Any, size: tuple[float, float], **margins: float) -> str:
    """Draw an ``svg`` element with ``margins`` as fractions of its size; a layout engine would draw twice."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        draw(figure.subplots(gridspec_kw=margins))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    element = buffer.getvalue()[buffer.getvalue().index("<svg") :].replace(INK, "currentColor")
    for pattern, replacement in NOT_IN_HTML:
        element = re.sub(pattern, replacement, element)
    return element
