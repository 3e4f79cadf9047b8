"""Plots of the figures, as PNG."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.report.figures import ACCENT, MUTED

from .results import Results, Table, measured
from .rows import PLAIN, REFERENCE
from .tables import PARTS, title

COLOURS = ("#8a8f98", "#b8bcc4", ACCENT, "#7fb3e6", "#d0582f", "#6a9f58", "#c9a227", "#8e6bbf")  # of the parts
STYLE: Any = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "font.size": 9}


def plots(results: Results) -> dict[str, bytes]:
    """PNG files by name; those for which there are figures."""
    runs, banks, slices = (measured(results.table(name)) for name in ("runtimes", "bank", "slices"))
    drawn = {}
    runs = {title(name, row): row for name, row in runs.items()}
    if runs:
        height = 0.8 + 0.28 * len(runs)
        drawn["encoder"] = _png(lambda axes: encoder_bars(axes, runs), (6.4, height))
        drawn["parts"] = _png(lambda axes: part_bars(axes, runs), (6.4, height + 0.4))
    if banks and REFERENCE in runs:
        drawn["bank"] = _png(lambda axes: bank_curve(axes, banks, runs), (4.8, 3.0))
    if slices:
        drawn["slices"] = _png(lambda axes: slice_curves(axes, slices), (4.8, 3.0))
    return drawn


def encoder_bars(axes: Axes, runs: Table) -> None:
    """Time of a slice inside the encoder."""
    values = {name: 1000 * row["encoder"] for name, row in runs.items() if name != PLAIN}
    bars = axes.barh(list(values), list(values.values()), color=ACCENT)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="ms inside the encoder, one slice")


def part_bars(axes: Axes, runs: Table) -> None:
    """Time inside each part of a run on the volume, one after the other."""
    left = [0.0] * len(runs)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        seconds = [row["parts"].get(part, 0) for row in runs.values()]
        axes.barh(list(runs), seconds, left=left, color=colour, label=part)
        left = [start + length for start, length in zip(left, seconds, strict=True)]
    axes.plot([row["run"] for row in runs.values()], list(runs), "|", color="black", markersize=12, label="run")
    axes.invert_yaxis()
    axes.set(xlabel="seconds, the whole volume")
    axes.figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=8)


def bank_curve(axes: Axes, banks: Table, runs: Table) -> None:
    """Search of a slice against the size of the bank."""
    sizes = [int(name.replace(",", "")) for name in banks]
    axes.loglog(
        sizes, [1000 * row["search"] for row in banks.values()], "o-", color="#d0582f", label="search of the bank"
    )
    for what, style, label in (("encoder", "--", "encoder, fp32"), ("score", "-", "score of the mixture")):
        axes.axhline(
            1000 * runs[REFERENCE][what], color=ACCENT if what == "score" else MUTED, linestyle=style, label=label
        )
    axes.set(xlabel="patches in the bank", ylabel="ms a slice")
    axes.legend(frameon=False, fontsize=8)


def slice_curves(axes: Axes, slices: Table) -> None:
    """Run time and memory against the number of slices that the encoder saw."""
    numbers = [row["n_slices"] for row in slices.values()]
    axes.plot(numbers, [row["run"] for row in slices.values()], "o-", color=ACCENT)
    axes.set(xlabel="slices scored", ylabel="run, s", ylim=(0, None), xlim=(0, None))
    axes.yaxis.label.set_color(ACCENT)
    right = axes.twinx()
    right.plot(numbers, [row["peak_mb"] / 1000 for row in slices.values()], "s--", color="#d0582f")
    right.set(ylabel="peak memory, GB", ylim=(0, None))
    right.yaxis.label.set_color("#d0582f")


def _png(draw: Callable[[Axes], None], size: tuple[float, float]) -> bytes:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        draw(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
