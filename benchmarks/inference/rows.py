"""The rows of all tables, and how each is measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.exports import compare
from scripts.runtimes.selection import FASTEST_FIRST, PRECISIONS, RUNTIMES

from .images import Images, cut, without_background
from .models import Models
from .processes import RowError, check, measured, run_bundle
from .results import Results, slug

REFERENCE, PLAIN, DEFAULT = "torch fp32", "plain", "auto"
UNQUANTIZED = "openvino bf16"  # what auto takes on a CPU where the model was not quantised
BANKS = (10_000, 100_000, 200_000, 1_500_000)
N_SLICES = (1, 8, 32, 91, 182)
N_NORMALS = (1, 5, None)  # None: all
METRICS = {
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "average precision",
    "max_dice": "best Dice",
    "aupro_0.3": "AUPRO",
}


class Way(NamedTuple):
    """A way to run inference: config ids and their values, configs over ``inference``, settings of its own fit."""

    settings: Mapping[str, Any] = {}
    overlays: tuple[str, ...] = ()
    fit: Mapping[str, Any] = {}


class Row(NamedTuple):
    """A row of a table, and what measures it."""

    table: str
    name: str
    measure: Callable[[], dict[str, Any]]

    @property
    def address(self) -> str:
        """How it is asked for on the command line."""
        return f"{self.table}/{slug(self.name)}"


def ways() -> dict[str, Way]:
    """The ways that are compared, by name."""
    pairs = FASTEST_FIRST["cuda" if torch.cuda.is_available() else "cpu"]
    in_order = sorted(pairs, key=lambda pair: (RUNTIMES.index(pair[0]), PRECISIONS.index(pair[1])))
    each = {" ".join(pair): Way({"runtime": pair[0], "precision": pair[1]}) for pair in in_order}
    if torch.cuda.is_available():
        each["torch bf16, compiled"] = Way({"runtime": "torch", "precision": "bf16", "torch_compile": True})
    return {
        **each,
        DEFAULT: Way(),
        "auto, fast": Way(overlays=("fast",)),
        "auto, 336 px": Way({"image_size": 336}, fit={"image_size": 336}),
    }


class Plan:
    """All rows.

    Args:
        images: what is measured on.
        models: what is measured.
        results: figures that others rest on.
        output: gets what runs leave.
    """

    def __init__(self, images: Images, models: Models, results: Results, output: Path) -> None:
        self.images = images
        self.models = models
        self.results = results
        self.output = output

    def __iter__(self) -> Iterator[Row]:
        """The rows in the order in which they are measured."""
        volume, slice_ = partial(cut, self.images, 182, self.output), partial(cut, self.images, 1, self.output)
        plain = Way({"runtime": "torch", "precision": "fp32", "slice_batch_size": 1})
        yield Row("runtimes", PLAIN, partial(self.run, partial(without_background, self.images, self.output), plain))
        for name, way in ways().items():
            yield Row("runtimes", name, partial(self.run, volume, way))
        for n_kept in BANKS:
            yield Row("bank", f"{n_kept:,}", partial(self.bank, n_kept))
        for n_slices in N_SLICES:
            yield Row(
                "slices", str(n_slices), partial(self.run, partial(cut, self.images, n_slices, self.output), Way())
            )
        for n_normals in N_NORMALS:
            way = Way(ways()[REFERENCE].settings, fit={"n_normals": n_normals} if n_normals else {})
            yield Row("normals", str(n_normals or "all"), partial(self.run, slice_, way))
        for name, way in ways().items():
            if name != DEFAULT:  # is one of the others
                yield Row("accuracy", name, partial(self.accuracy, name, way))

    def model(self, way: Way) -> Path:
        """The fitted model of a way, quantised where it may run so: that is not to be part of a run."""
        if way.settings.get("runtime") == "torch":
            return self.models.fitted(**way.fit)
        try:
            return self.models.quantized(**way.fit)
        except RowError:
            if way.settings.get("precision") == "int8":
                raise
            return self.models.fitted(**way.fit)

    def run(self, case: Callable[[], Path], way: Way) -> dict[str, Any]:
        """Figures of one inference run; see `benchmarks.inference.run.measure`."""
        check(["inference", *way.overlays], way.settings)
        return measured(
            "run",
            case=str(case()),
            output_dir=str(self.output / "runs"),
            settings={**way.settings, "ckpt_path": str(self.model(way))},
            overlays=way.overlays,
            started=time.time(),
        )

    def accuracy(self, name: str, way: Way) -> dict[str, Any]:
        """Metrics of maps against labels, and the share of voxels whose mask differs from the reference's."""
        model, output_dir = self.model(way), self.output / "maps" / slug(name)
        run_bundle(
            "evaluation",
            ["inference", *way.overlays, "evaluate"],
            dataset_dir=self.images.cases,
            label_dir=self.images.labels,
            **({"normal_pattern": self.images.healthy} if self.images.healthy else {}),
            output_dir=output_dir,
            ckpt_path=model,
            n_resamplings=0,
            report=False,
            show_progress=False,
            **way.settings,
        )
        pooled = json.loads((output_dir / "metrics.json").read_text())["pooled"]
        figures = {metric: pooled[metric]["value"] for metric in METRICS}
        reference = output_dir.with_name(slug(REFERENCE))
        if reference.is_dir():
            _, n_voxels, _, n_differ = compare(reference, output_dir)
            figures["differing"] = n_differ / n_voxels
        return figures

    def bank(self, n_kept: int) -> dict[str, Any]:
        """Figures of a memory bank; see `benchmarks.inference.bank.measure`."""
        reference = self.results.table("runtimes").get(REFERENCE, {})
        if "n_features" not in reference:
            raise RowError(f"it needs the row runtimes/{slug(REFERENCE)}, which has no figures")
        n_patches, n_features = reference["patches_of_slice"], reference["n_features"]
        return measured("bank", n_kept=n_kept, n_patches=n_patches, n_features=n_features)
