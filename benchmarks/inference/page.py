"""The page of all figures, from a template, and plots beside it."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from scripts.files import atomic_write

from .plots import PARTS, write_plots
from .rows import DEFAULT, METRICS, PLAIN, REFERENCE, UNQUANTIZED, Figures

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)
TABLES = ("runtimes", "accuracy", "bank", "slices", "normals")


class Row(dict):
    """Figures of a row with its ``name`` and ``title``; one that was not measured is NaN, and a dash on the page."""

    def __init__(self, name: str, figures: Figures) -> None:
        selected = f": {figures['backend_name']}" if name.startswith(DEFAULT) and "backend_name" in figures else ""
        super().__init__({key: value for key, value in figures.items() if value is not None})
        self.update(name=name, title=name + selected, parts=defaultdict(float, figures.get("parts", {})))

    def __missing__(self, key: str) -> float:
        return math.nan


def write_page(figures: Mapping[str, Any], page: Path) -> None:
    """Write the page, and its plots beside it.

    Args:
        figures: rows of each table by name, and ``machine``.
        page: a Markdown file.
    """
    tables = {table: [Row(name, row) for name, row in figures.get(table, {}).items()] for table in TABLES}
    runs = {row["name"]: row for row in tables["runtimes"]}
    missing = Row("", {})
    baseline = next((row for row in tables["accuracy"] if row["name"] == REFERENCE), missing)
    compared = [runs[name] for name in (DEFAULT, UNQUANTIZED, REFERENCE) if "run" in runs.get(name, {})]

    def metric_text(row: Figures, metric: str) -> str:
        difference = row[metric] - baseline[metric]
        change = f"{difference:+.4f}" if metric == "pixel_auroc" else f"{100 * difference / baseline[metric]:+.1f} %"
        return f"{row[metric]:.4f}" + ("" if row is baseline or math.isnan(difference) else f" ({change})")

    text = TEMPLATES.get_template("performance.md.j2").render(
        **tables,
        machine=figures.get("machine", {}),
        plain=runs.get(PLAIN, missing),
        reference=runs.get(REFERENCE, missing),
        compared=compared,
        speed_ups=[f"speed-up of {run['title']}" for run in compared],
        part_names=list(PARTS),
        metrics=METRICS,
        metric_text=metric_text,
        times=lambda ratio: f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}",
        plots=write_plots(tables, page),
    )
    with atomic_write(page) as unfinished:
        unfinished.write_text(re.sub(r"\bnan( %| s| MB| GB)?", "-", text), encoding="utf-8")
