"""The masks of each method: `python -m benchmarks.detection --data FOLDER`.

FOLDER is one of `population`, with labels. Every method scores each normal case without having
seen it (cross-fitting), takes threshold and detection limit from these cases, and makes masks by the same rules. The
last two columns are of the normals themselves, each judged by the limits of the others.
Rows are for all subjects and, as settings were chosen on the first half of them, for the second.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from scripts.inference.measurements import decision
from scripts.inference.regions import Regions, outlined
from scripts.metrics.cases import CaseTable, case_metrics
from scripts.metrics.functional import pixel_metrics
from scripts.metrics.histograms import bin_edges, count_pixels
from scripts.metrics.matching import count_mask, match_regions
from scripts.models.detection import DetectionLimits
from scripts.training.cross_fit import CrossFit, HeldOut
from scripts.training.embeddings import CachedEmbeddings
from scripts.training.geometry import CaseGeometry
from scripts.training.held_out_scores import HeldOutScores

from .population import ROOT, Case, Population, config, embed
from .quality import intensities, memory_bank, spread

METRICS = {
    "pixel_ap": "AP",
    "pixel_ap_foreground": "AP, foreground",
    "mean_dice_of_mask": "Dice, mean",
    "median_dice_of_mask": "median",
    "lesion_sensitivity": "lesions found",
    "false_regions_per_case": "false regions a case",
    "froc_score": "FROC, mean sensitivity",
    "flagged": "ill cases flagged",
    "healthy_regions": "regions a healthy case",
    "healthy_flagged": "healthy cases flagged",
    "held_out_regions": "regions a held-out normal",
    "held_out_flagged": "held-out normals flagged",
}


class Result(NamedTuple):
    """A reported case: its numbers, its histograms, the number of its detected regions, and whether it is flagged."""

    row: dict[str, Any]
    counts: np.ndarray
    n_regions: int
    flagged: bool


class Maps(NamedTuple):
    """Maps ``[S,H,W]`` of held-out normals and of the cases to report, raw, with their geometry."""

    held_out: list[tuple[np.ndarray, CaseGeometry]]
    test: list[tuple[np.ndarray, CaseGeometry]]


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--embedding_store", type=Path, default=ROOT / "quality_output")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--halves", nargs="+", choices=["first", "second", "both"], default=["both", "second"])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--false_regions", type=float, default=config("inference")["false_regions"])
    parser.add_argument("--extent", type=float, default=config("inference")["extent"])
    parser.add_argument("--min_region_mm3", type=float, default=config("inference")["min_region_mm3"])
    parser.add_argument("--case_alpha", type=float, default=config("inference")["case_alpha"])
    options = parser.parse_args()
    data = embed(options.data, options.embedding_store)
    lines = [f"| method | {' | '.join(METRICS.values())} |", f"|---|{'---|' * len(METRICS)}"]
    print("\n".join(lines), flush=True)
    for name in options.methods:
        rows: dict[str, list[dict[str, float]]] = {}
        for seed in range(options.seeds if name == "mixture" else 1):
            for score, maps in METHODS[name](data, seed, options):
                for half, values in evaluate(maps, data.cases, options).items():
                    row = score if half == "both" else f"{score}, {half} half"
                    rows.setdefault(row, []).append(values)
        for row, seeds in rows.items():
            lines.append(table_line(row, seeds))
            print(lines[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


def mixture(data: Population, seed: int, options: argparse.Namespace) -> Iterator[tuple[str, Maps]]:
    """Fit mixtures without each fold and one on all normals."""
    data.network.mixture.score_kinds = ("negative_log_likelihood", "subspace")
    normals = data.train + data.validation
    tracker: Any = SimpleNamespace(best_epoch=options.epochs)
    settling_epochs = config("train")["settling_epochs"]
    sets = (data.train, data.validation)
    cross_fit = CrossFit(data.network, tracker, *sets, options.folds, seed=seed, settling_epochs=settling_epochs)
    held_out = HeldOutScores(data.network, cross_fit.held_out())
    test = HeldOutScores(data.network, [HeldOut(cross_fit.fit(normals), data.test)])
    for row, kind in enumerate(data.network.mixture.score_kinds):
        yield f"mixture, {kind}", Maps(raw_maps(held_out, row), raw_maps(test, row))


def searched(data: Population, seed: int, options: argparse.Namespace) -> Iterator[tuple[str, Maps]]:
    """Search among the patches of the normals, for a held-out case among those of the other folds."""
    tracker: Any = None
    cross_fit = CrossFit(data.network, tracker, data.train, data.validation, options.folds, seed=seed)
    pixels = {name: getattr(data.network, name) for name in ("resized", "patch_grid", "smooth", "to_pixels")}
    network = SimpleNamespace(mixture=memory_bank(data.train + data.validation), **pixels)
    held_out = HeldOutScores(network, (HeldOut(memory_bank(rest), fold) for fold, rest in cross_fit.folds()))  # type: ignore[arg-type]
    test = HeldOutScores(network, [HeldOut(network.mixture, data.test)])  # type: ignore[arg-type]
    yield "memory bank", Maps(raw_maps(held_out, 0), raw_maps(test, 0))


def intensity(data: Population, seed: int, options: argparse.Namespace) -> Iterator[tuple[str, Maps]]:
    """Take the scaled grey value itself as the map."""

    def maps(images: Sequence[dict[str, Any]], embeddings: CachedEmbeddings) -> list[tuple[np.ndarray, CaseGeometry]]:
        return [(intensities(item["image"], data), embeddings.geometry(index)) for index, item in enumerate(images)]

    yield "grey value", Maps(maps(data.normal_images, data.train + data.validation), maps(data.test_images, data.test))


METHODS: dict[str, Callable[[Population, int, argparse.Namespace], Iterator[tuple[str, Maps]]]] = {
    "mixture": mixture,
    "memory_bank": searched,
    "intensity": intensity,
}


def raw_maps(scores: HeldOutScores, row: int) -> list[tuple[np.ndarray, CaseGeometry]]:
    """Return the raw maps of scored cases, for one of their scores."""
    return [(scores.anomaly_map(case, row), case[0].geometry) for case in scores.cases]


def evaluate(maps: Maps, cases: Sequence[Case], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Calibrate maps on the held-out normals, make masks and compare them with the labels.

    Returns:
        The metrics of each of the halves.
    """
    normal = np.concatenate(
        [scores[geometry.nonempty][geometry.foreground[geometry.nonempty]] for scores, geometry in maps.held_out]
    )
    median, threshold = np.quantile(normal, [0.5, 0.99])

    def regions_of(scores: np.ndarray, geometry: CaseGeometry) -> Any:
        calibrated = (scores - median) / (threshold - median)
        return calibrated, outlined(calibrated, geometry.regions(calibrated, options.min_region_mm3), options.extent)

    held_out = [regions_of(*case)[1] for case in maps.held_out]
    limits = DetectionLimits.of([regions.peaks for regions in held_out])
    limit = limits.peak_limit(options.false_regions)
    results = []
    for case, (scores, geometry) in zip(cases, maps.test, strict=True):
        calibrated, regions = regions_of(scores, geometry)
        n_regions, flagged = judge(regions, limits, options)
        label = np.zeros(scores.shape, bool) if case.label is None else case.label
        detected = regions.reaching(limit)
        row = {
            "image_score": detected.peaks.max(initial=0.0),
            "is_anomalous": label.any(),
            "size_unit": "mm3",
            **count_mask(label, detected.labels > 0),
            **match_regions(label, regions, limit, geometry.voxel_mm3),
        }
        counts = count_pixels(calibrated, label, bin_edges(), geometry.foreground)
        results.append(Result(row, counts, n_regions, flagged))
    held_out_regions, held_out_flagged = np.mean(left_out(held_out, options), axis=0)
    normals = {"held_out_regions": held_out_regions, "held_out_flagged": held_out_flagged}
    return {
        half: summarize([result for case, result in zip(cases, results, strict=True) if half in ("both", case.half)])
        | normals
        for half in options.halves
    }


def summarize(results: Sequence[Result]) -> dict[str, float]:
    """Compute the metrics of some of the cases."""
    rows = [result.row for result in results]
    ill = [result.flagged for result in results if result.row["is_anomalous"]]
    healthy = [(result.n_regions, result.flagged) for result in results if not result.row["is_anomalous"]]
    values = {"false_regions_per_case": np.nan, **case_metrics(CaseTable.of(rows), np.ones(len(rows)))}
    values.update(pixel_metrics(np.sum([result.counts for result in results], axis=0), bin_edges(), {}))
    values["flagged"] = float(np.mean(ill)) if ill else np.nan
    values["healthy_regions"], values["healthy_flagged"] = np.mean(healthy, axis=0) if healthy else (np.nan, np.nan)
    return values


def left_out(normals: Sequence[Regions], options: argparse.Namespace) -> list[tuple[int, bool]]:
    """Judge each held-out normal case by the limits of the others, see `judge`."""
    judged = []
    for index, regions in enumerate(normals):
        others = [other.peaks for other in (*normals[:index], *normals[index + 1 :])]
        judged.append(judge(regions, DetectionLimits.of(others), options))
    return judged


def judge(regions: Regions, limits: DetectionLimits, options: argparse.Namespace) -> tuple[int, bool]:
    """Count the detected regions of a case, and decide whether it is flagged."""
    detected = regions.reaching(limits.peak_limit(options.false_regions))
    return len(detected.peaks), bool(decision(detected, limits, options.case_alpha)["flagged"])


def table_line(name: str, rows: Sequence[dict[str, float]]) -> str:
    """Write a line of the table: mean and standard deviation over seeds."""
    values = [[row[metric] for row in rows] for metric in METRICS]
    columns = ["-" if np.isnan(each).any() else spread(each) for each in values]
    return f"| {name} | {' | '.join(columns)} |"


if __name__ == "__main__":
    main()
