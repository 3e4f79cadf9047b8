"""Plots of the figures, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.files import atomic_write
from scripts.report.figures import ACCENT, MUTED

from .rows import PLAIN, REFERENCE

WARM = "#d0582f"
PARTS = {  # of a run, in order
    **{"load": MUTED, "preprocess": "#b8bcc4", "encode": ACCENT, "resize": "#7fb3e6"},
    **{"score": WARM, "postprocess": "#6a9f58", "write": "#c9a227", "report": "#8e6bbf"},
}
STYLE: Any = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "font.size": 9}

Rows = Sequence[Mapping[str, Any]]


def write_plots(tables: Mapping[str, Rows], page: Path) -> dict[str, str]:
    """Write a PNG beside the page for each plot that has figures, and return the files by name."""
    measured = {table: [row for row in rows if "error" not in row] for table, rows in tables.items()}
    runs, height = measured["runtimes"], 0.8 + 0.28 * len(measured["runtimes"])
    plots: tuple[tuple[str, Callable[[Axes, Rows], None], Rows, tuple[float, float]], ...] = (
        ("encoder", encoder_bars, [row for row in runs if row["name"] != PLAIN], (6.4, height)),
        ("parts", part_bars, runs, (6.4, height + 0.4)),
        ("bank", partial(bank_curve, runs=runs), measured["bank"], (4.8, 3.0)),
        ("slices", slice_curves, measured["slices"], (4.8, 3.0)),
    )
    files = {name: f"{page.stem}_{name}.png" for name, _, rows, _ in plots if rows}
    for name, draw, rows, size in plots:
        if rows:
            with matplotlib.rc_context(STYLE), atomic_write(page.with_name(files[name])) as unfinished:
                figure = Figure(figsize=size, dpi=100, layout="constrained")
                draw(figure.subplots(), rows)
                figure.savefig(unfinished, format="png", metadata={"Software": None})
    return files


def encoder_bars(axes: Axes, rows: Rows) -> None:
    """Draw the time of a slice inside the encoder."""
    bars = axes.barh([row["title"] for row in rows], [1000 * row["encoder"] for row in rows], color=ACCENT)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="ms inside the encoder, one slice")


def part_bars(axes: Axes, rows: Rows) -> None:
    """Draw the time inside each part of a run on the volume, one after the other."""
    titles, left = [row["title"] for row in rows], [0.0] * len(rows)
    for part, colour in PARTS.items():
        seconds = [row["parts"][part] for row in rows]
        axes.barh(titles, seconds, left=left, color=colour, label=part)
        left = [start + length for start, length in zip(left, seconds, strict=True)]
    axes.plot([row["run"] for row in rows], titles, "|", color="black", markersize=12, label="run")
    axes.invert_yaxis()
    axes.set(xlabel="seconds, the whole volume")
    axes.figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=8)


def bank_curve(axes: Axes, rows: Rows, runs: Rows) -> None:
    """Draw the search for the patches of a slice against the size of the bank."""
    sizes, search = [int(row["name"].replace(",", "")) for row in rows], [1000 * row["search"] for row in rows]
    axes.loglog(sizes, search, "o-", color=WARM, label="search of the bank")
    for row in runs:
        if row["name"] == REFERENCE:
            axes.axhline(1000 * row["encoder"], color=MUTED, linestyle="--", label="encoder, fp32")
            axes.axhline(1000 * row["score"], color=ACCENT, label="score of the mixture")
    axes.set(xlabel="patches in the bank", ylabel="ms per slice")
    axes.legend(frameon=False, fontsize=8)


def slice_curves(axes: Axes, rows: Rows) -> None:
    """Draw the time of a run and its peak memory against the number of scored slices."""
    curves = ((axes, "run", 1, "run, s", ACCENT, "o-"), (axes.twinx(), "peak_mb", 1e-3, "peak memory, GB", WARM, "s--"))
    for side, figure, unit, label, colour, line in curves:
        side.plot([row["n_slices"] for row in rows], [unit * row[figure] for row in rows], line, color=colour)
        side.set(ylabel=label, ylim=(0, None))
        side.yaxis.label.set_color(colour)
    axes.set(xlabel="slices scored", xlim=(0, None))
