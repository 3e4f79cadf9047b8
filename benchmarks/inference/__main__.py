"""The cost of inference: `python -m benchmarks.inference` measures it and writes ``docs/benchmarks/performance.md``.

Without --rows, rows that have no figures yet are measured: an interrupted measurement continues.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from fnmatch import fnmatch
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from scripts.files import write_json

from .images import find_images
from .page import write_page
from .rows import ROOT, Benchmark, Figures, RowError, slug

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
PACKAGES = ("torch", "openvino", "nncf", "onnxruntime", "tensorrt", "faiss-cpu", "monai")


def main() -> None:
    """Measure rows, and write the page from all figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("--rows", nargs="+", help="tables or rows to measure again, such as bank or 'runtimes/torch-*'")
    parser.add_argument("--page_only", action="store_true", help="write the page from the figures, measure nothing")
    parser.add_argument("--output", type=Path, default=ROOT / "performance_output", help="figures, models and maps")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks" / "performance.md")
    parser.add_argument("--model", type=Path, help="fitted with the default settings; without it one is fitted")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="a folder with brain_t1 and ms_flair"
    )
    options = parser.parse_args()
    if options.model and not options.model.is_file():
        parser.error(f"there is no model {options.model}; expected the model.pt of a fit")
    output: Path = options.output.resolve()
    path = output / "figures.json"
    if options.page_only and not path.is_file():
        parser.error(f"there are no figures in {path}; measure first")
    figures: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if not options.page_only:
        images = find_images(options.data.resolve(), output)
        try:
            tables = Benchmark(images, output, figures, options.model).rows()
        except ValueError as error:
            parser.error(str(error))
        addresses = {f"{table}/{slug(name)}": (table, name) for table in tables for name in tables[table]}
        selected: set[str] = set()
        for pattern in options.rows or []:
            matches = {
                address for address in addresses if fnmatch(address, pattern) or address.startswith(f"{pattern}/")
            }
            if not matches:
                parser.error(f"no row {pattern!r}; there are {', '.join(addresses)}")
            selected |= matches
        figures["machine"] = {**machine(), "volume": images.volume_name, "images": images.evaluation_name}
        for number, (address, (table, name)) in enumerate(addresses.items(), 1):
            rows = figures.setdefault(table, {})
            if address in selected if options.rows else name not in rows:
                print(f"[{number}/{len(addresses)}] {address:32s}", end="", flush=True)
                rows[name] = measure(tables[table][name])
                figures[table] = {row: rows[row] for row in tables[table] if row in rows}
                write_json(figures, path)
    write_page(figures, options.page)
    print(options.page)


def measure(row: Callable[[], Figures]) -> Figures:
    """Measure a row, and return its figures or the ``error`` that prevented them."""
    begin = time.perf_counter()
    try:
        figures = row()
    except RowError as error:
        figures = {"error": str(error)}
    print(f"{time.perf_counter() - begin:6.0f} s  {figures.get('error', '')}", flush=True)
    return figures


def machine() -> dict[str, Any]:
    """Describe the machine without its name: processor, cores, relevant instruction sets, GPU and versions."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    processor = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    installed = {package.name: package.version for package in distributions()}
    return {
        "processor": processor.get("model name", "an unknown processor"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in processor.get("flags", "").split()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: installed[name] for name in PACKAGES if name in installed},
    }


if __name__ == "__main__":
    main()
