"""What inference costs: `python -m benchmarks.inference` measures whole processes and writes ``docs/performance.md``.

Rows that have no figures yet are measured, so that an interrupted measurement goes on.
"""

from __future__ import annotations

import argparse
import time
from fnmatch import fnmatch
from pathlib import Path

from scripts.files import write_json

from .images import find_images
from .machine import machine
from .models import Models
from .page import write_page
from .processes import RowError
from .results import Results
from .rows import Plan, Row

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Measure what is asked for, and write the page from all figures there are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("--rows", nargs="+", help="tables or rows to measure anew, such as bank or 'runtimes/torch-*'")
    parser.add_argument("--page_only", action="store_true", help="write the page from the figures, measure nothing")
    parser.add_argument("--output", type=Path, default=ROOT / "performance_output", help="figures, models and maps")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    parser.add_argument("--model", type=Path, help="fitted with the default settings; without it one is fitted")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="a folder with brain_t1 and ms_flair"
    )
    options = parser.parse_args()
    if options.model and not options.model.is_file():
        parser.error(f"there is no model {options.model}; expected the model.pt of a fit")
    output: Path = options.output.resolve()
    results = Results(output / "figures")
    if not options.page_only:
        images = find_images(options.data.resolve(), output)
        try:
            models = Models(images, output / "models", options.model)
        except ValueError as error:
            parser.error(str(error))
        rows = list(Plan(images, models, results, output))
        for pattern in options.rows or []:
            if not any(asked_for(row, [pattern]) for row in rows):
                parser.error(f"no row {pattern!r}; there are {', '.join(row.address for row in rows)}")
        names = {"volume": images.volume_name, "images": images.name}
        write_json({**machine(), **names}, results.folder / "machine.json")
        for place, row in enumerate(rows):
            missing = not results.path(row.table, row.name).is_file()
            if asked_for(row, options.rows) if options.rows else missing:
                measure(row, place, len(rows), results)
    write_page(results, options.page)
    print(options.page)


def asked_for(row: Row, patterns: list[str]) -> bool:
    """Whether one of the patterns names the row or its table."""
    return any(fnmatch(row.address, pattern) or row.table == pattern for pattern in patterns)


def measure(row: Row, place: int, n_rows: int, results: Results) -> None:
    """Measure a row and keep its figures, or why it has none."""
    print(f"[{place + 1}/{n_rows}] {row.address:32s}", end="", flush=True)
    begin = time.perf_counter()
    try:
        figures = row.measure()
    except RowError as error:
        figures = {"error": str(error)}
    results.keep(row.table, row.name, place, figures)
    print(f"{time.perf_counter() - begin:6.0f} s  {figures.get('error', '')}", flush=True)


if __name__ == "__main__":
    main()
