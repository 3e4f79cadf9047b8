"""The page of all figures: tables, plots, and whether what was to be reached was."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scripts.files import atomic_write

from . import tables
from .plots import plots
from .results import Results
from .rows import PLAIN, REFERENCE
from .targets import BOUNDS, targets

TABLES = ("runtimes", "accuracy", "bank", "slices", "normals")


def write_page(results: Results, page: Path) -> None:
    """Write the page, and its plots beside it.

    Args:
        results: all figures.
        page: a Markdown file.
    """
    drawn = {name: (f"{page.stem}_{name}.png", png) for name, png in plots(results).items()}
    for file, png in drawn.values():
        with atomic_write(page.with_name(file)) as partial:
            partial.write_bytes(png)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found = {name: results.table(name) for name in TABLES}
    runs = found["runtimes"]
    text = templates.get_template("performance.md.j2").render(
        machine=results.machine(),
        names={"plain": PLAIN, "reference": REFERENCE},
        bounds=BOUNDS,
        targets=targets(results),
        plots={name: file for name, (file, _) in drawn.items()},
        failed={
            name: {row: figures["error"] for row, figures in table.items() if "error" in figures}
            for name, table in found.items()
        },
        slice=tables.one_slice(runs),
        volume=tables.volume(runs),
        accuracy=tables.accuracies(found["accuracy"]),
        bank=tables.memory_bank(found["bank"], runs),
        slices=tables.more_slices(found["slices"]),
        normals=tables.more_normals(found["normals"]),
    )
    with atomic_write(page) as partial:
        partial.write_text(text, encoding="utf-8")
