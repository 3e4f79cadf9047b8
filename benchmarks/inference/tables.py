"""The tables of the page, from the figures: heads and rows of text."""

from __future__ import annotations

from typing import Any

from .results import Table, measured
from .rows import DEFAULT, METRICS, PLAIN, REFERENCE, UNQUANTIZED
from .targets import difference, outside, percent, ratio, share, with_bank

PARTS = ("load", "preprocess", "encode", "resize", "score", "postprocess", "write", "report")  # of a run, in order

Text = list[list[str]]


def one_slice(runs: Table) -> Text:
    """Encoder and score of one slice."""
    reference = runs.get(REFERENCE, {})
    head = [
        "",
        "pixels",
        "encoder, ms",
        f"times {REFERENCE}",
        "GFLOP/s",
        "score, ms",
        "share of the encoder",
    ]
    return [head] + [
        [
            title(name, row),
            " x ".join(map(str, row["pixels"])),
            f"{1000 * row['encoder']:.0f}",
            times(ratio(reference, row, "encoder")),
            f"{row['gflop'] / row['encoder']:.0f}",
            f"{1000 * row['score']:.1f}",
            percent(share(row, "score", "encoder")),
        ]
        for name, row in measured(runs).items()
        if name != PLAIN
    ]


def volume(runs: Table) -> Text:
    """Runs on the whole volume by part."""
    plain = runs.get(PLAIN, {})
    head = ["", "slices", "start", "run", *PARTS, "outside", "peak", "faster"]
    return [head] + [
        [
            title(name, row),
            str(row["n_slices"]),
            f"{row['start']:.0f} s",
            f"{row['run']:.1f} s",
            *(f"{row['parts'].get(part, 0):.1f}" for part in PARTS),
            percent(outside(row)),
            f"{row['peak_mb'] / 1000:.1f} GB" + (f", GPU {row['gpu_mb'] / 1000:.1f} GB" if row["gpu_mb"] else ""),
            times(ratio(plain, row, "run")),
        ]
        for name, row in measured(runs).items()
    ]


def accuracies(accuracy: Table) -> Text:
    """Metrics, and their differences from the reference."""
    reference = accuracy.get(REFERENCE, {})

    def cell(row: dict[str, Any], metric: str) -> str:
        gap = difference(row, reference, metric)
        if row[metric] is None or gap is None or row is reference:
            return "-" if row[metric] is None else f"{row[metric]:.4f}"
        return (
            f"{row[metric]:.4f} ({gap:+.4f})" if metric == "pixel_auroc" else f"{row[metric]:.4f} ({100 * gap:+.1f} %)"
        )

    return [["", *METRICS.values(), "voxels whose mask differs"]] + [
        [
            name,
            *(cell(row, metric) for metric in METRICS),
            f"{100 * row['differing']:.3f} %" if "differing" in row else "-",
        ]
        for name, row in measured(accuracy).items()
    ]


def memory_bank(banks: Table, runs: Table) -> Text:
    """Search against scoring, and whole pipelines."""
    reference = runs.get(REFERENCE, {})
    ours = {name: row for name in (DEFAULT, UNQUANTIZED, REFERENCE) if "run" in (row := runs.get(name, {}))}
    head = ["patches kept", "search, ms a slice", "times our score", "whole pipeline"]
    head += [f"times ours, {title(name, row)}" for name, row in ours.items()]
    return [[*head, "the bank alone", "peak of its process"]] + [
        [
            name,
            f"{1000 * row['search']:.0f}",
            times(row["search"] / reference["score"] if reference else None),
            f"{seconds:.0f} s" if (seconds := with_bank(reference, row)) else "-",
            *(times(seconds / mine["run"] if seconds else None) for mine in ours.values()),
            f"{row['bank_mb']:,.0f} MB",
            f"{row['peak_mb']:,.0f} MB",
        ]
        for name, row in measured(banks).items()
    ]


def more_slices(slices: Table) -> Text:
    """Cost against the number of slices."""
    return [["slices", "of them scored", "start", "run", "ms a scored slice", "peak memory"]] + [
        [
            name,
            str(row["n_slices"]),
            f"{row['start']:.0f} s",
            f"{row['run']:.1f} s",
            f"{1000 * row['run'] / row['n_slices']:.0f}",
            f"{row['peak_mb'] / 1000:.2f} GB",
        ]
        for name, row in measured(slices).items()
    ]


def more_normals(normals: Table) -> Text:
    """Cost against the size of the training set."""
    return [["normals", "components in use", "score, ms a slice", "mixture", "model.pt"]] + [
        [
            name,
            str(row["n_active"]),
            f"{1000 * row['score']:.1f}",
            f"{row['mixture_mb']:.1f} MB",
            f"{row['model_mb']:.1f} MB",
        ]
        for name, row in measured(normals).items()
    ]


def title(name: str, row: dict[str, Any]) -> str:
    """A way's name, and what it ran in where the name leaves it open."""
    return f"{name}: {row['backend_name']}" if name.startswith(DEFAULT) else name


def times(value: float | None) -> str:
    """A ratio."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
