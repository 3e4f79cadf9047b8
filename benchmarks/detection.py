"""The masks of each method: `python -m benchmarks.detection --data FOLDER`.

FOLDER holds ``normal`` and ``validation``, and the cases to report in ``anomalous/images`` with ``anomalous/labels``,
or in ``test`` with ``labels``. A case without a label is healthy. Every method scores each normal case without having
seen it (cross-fitting), takes threshold and detection limit from these cases, and makes masks by the same rules. The
last two columns are of the normals themselves, each judged by the limits of the others.
Rows are for all subjects and, as settings were chosen on the first half of them, for the second.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.transforms import Compose, EnsureChannelFirstd

from scripts.data import LoadImageFiled, OrientUprightd
from scripts.data.cases import CaseDataset, find_cases
from scripts.inference.measurements import decision
from scripts.inference.regions import Regions, outlined
from scripts.metrics.cases import CaseTable, case_metrics
from scripts.metrics.functional import pixel_metrics
from scripts.metrics.histograms import bin_edges, count_pixels
from scripts.metrics.matching import count_mask, match_regions
from scripts.models.detection import DetectionLimits
from scripts.training.cross_fit import CrossFit, HeldOut
from scripts.training.embeddings import CachedEmbeddings, EmbeddingDataset
from scripts.training.geometry import CaseGeometry
from scripts.training.held_out_scores import HeldOutScores

from .memory_bank import MemoryBank
from .quality import ROOT, config, spread

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


class Case(NamedTuple):
    """A case to report: its name and its label ``[S,H,W]``, None for a healthy case."""

    name: str
    label: np.ndarray | None


class Data(NamedTuple):
    """Embeddings of all cases, and the cases to report."""

    normals: CachedEmbeddings
    images: Sequence[dict[str, Any]]
    test: CachedEmbeddings
    test_images: Sequence[dict[str, Any]]
    cases: list[Case]
    network: Any
    inferer: Any


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


def embed(folder: Path, store: Path) -> Data:
    """Embed all cases with the settings of the bundle's configs."""
    train = config("train", dataset_dir=folder / "normal", validation_dir=folder / "validation", embedding_store=store)
    network, inferer, cache = (train.get_parsed_content(name) for name in ("network", "inferer", "embedding_cache"))
    transform = train.get_parsed_content("preprocessing")
    normals = train.get_parsed_content("normals") + find_cases(folder / "validation")
    is_split = (folder / "anomalous").is_dir()
    found = find_cases(folder / "anomalous" / "images" if is_split else folder / "test")
    labels = folder / "anomalous" / "labels" if is_split else folder / "labels"
    paths = {case["case"]: case["image"] for case in find_cases(labels)} if labels.is_dir() else {}
    datasets: list[Any] = [CaseDataset(cases, transform) for cases in (normals, found)]
    embedded = [EmbeddingDataset(cases, network, inferer, cache=cache).compute() for cases in datasets]
    cases = [Case(case["case"], label_of(paths.get(case["case"]), inferer)) for case in found]
    return Data(embedded[0], datasets[0], embedded[1], datasets[1], cases, network, inferer)


def label_of(path: str | None, inferer: Any) -> np.ndarray | None:
    """Read a label as the slices ``[S,H,W]`` that the network sees."""
    if path is None:
        return None
    upright = Compose([LoadImageFiled("image"), EnsureChannelFirstd("image"), OrientUprightd("image")])
    image = upright({"image": path})["image"]
    (slices,) = inferer.slices(image[:1].unsqueeze(0))
    return np.asarray(slices[:, 0]) > 0


def mixture(data: Data, seed: int, options: argparse.Namespace) -> Iterator[tuple[str, Maps]]:
    """Fit mixtures without each fold and one on all normals."""
    data.network.mixture.score_kinds = ("negative_log_likelihood", "subspace")
    empty = data.normals.select([])
    tracker: Any = SimpleNamespace(best_epoch=options.epochs)
    cross_fit = CrossFit(data.network, tracker, data.normals, empty, options.folds, seed=seed)
    held_out = HeldOutScores(data.network, cross_fit.held_out())
    test = HeldOutScores(data.network, [HeldOut(cross_fit.fit(data.normals), data.test)])
    for row, kind in enumerate(data.network.mixture.score_kinds):
        yield f"mixture, {kind}", Maps(raw_maps(held_out, row), raw_maps(test, row))


def memory_bank(data: Data, seed: int, options: argparse.Namespace) -> Iterator[tuple[str, Maps]]:
    """Search among the patches of the normals, for a held-out case among those of the other folds."""
    empty = data.normals.select([])
    cross_fit = CrossFit(data.network, None, data.normals, empty, options.folds, seed=seed)  # type: ignore[arg-type]
    pixels = {name: getattr(data.network, name) for name in ("resized", "patch_grid", "to_pixels")}
    network = SimpleNamespace(mixture=Searched(data.normals), **pixels)
    held_out = HeldOutScores(network, (HeldOut(Searched(rest), fold) for fold, rest in cross_fit.folds()))  # type: ignore[arg-type]
    test = HeldOutScores(network, [HeldOut(network.mixture, data.test)])  # type: ignore[arg-type]
    yield "memory bank", Maps(raw_maps(held_out, 0), raw_maps(test, 0))


class Searched:
    """Stand in for a mixture, with the cosine distance to the nearest normal patch as its only score."""

    score_kinds = ("cosine",)
    means = torch.empty(0)

    def __init__(self, normals: CachedEmbeddings) -> None:
        patches = (normals[index].float().numpy() for index in range(len(normals)))
        self.bank = MemoryBank(patches, normals.n_features)

    def anomaly_score(self, patches: torch.Tensor, kind: str) -> torch.Tensor:
        """Return the distances ``[N]`` of patches ``[N,D]``."""
        return torch.from_numpy(self.bank.distances(patches.numpy()))


def intensity(data: Data, seed: int, options: argparse.Namespace) -> Iterator[tuple[str, Maps]]:
    """Take the scaled grey value itself as the map."""

    def maps(images: Sequence[dict[str, Any]], embeddings: CachedEmbeddings) -> list[tuple[np.ndarray, CaseGeometry]]:
        found = []
        for index, item in enumerate(images):
            (slices,) = data.inferer.slices(item["image"].unsqueeze(0))
            found.append((np.asarray(slices.amax(1)), embeddings.geometry(index)))
        return found

    yield "grey value", Maps(maps(data.images, data.normals), maps(data.test_images, data.test))


METHODS: dict[str, Callable[[Data, int, argparse.Namespace], Iterator[tuple[str, Maps]]]] = {
    "mixture": mixture,
    "memory_bank": memory_bank,
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
        half: summarize([result for case, result in zip(cases, results, strict=True) if is_reported(case, cases, half)])
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


def is_reported(case: Case, cases: Sequence[Case], half: str) -> bool:
    """Return whether a case's subject is in the half to report."""
    subjects = sorted({subject_of(each.name) for each in cases})
    position = subjects.index(subject_of(case.name))
    return half == "both" or (position < len(subjects) // 2) == (half == "first")


def subject_of(case: str) -> str:
    """Return the subject of a case, such as ``sub-07`` of ``normal_sub-07_T1w``."""
    return re.sub("^(ab)?normal_", "", case).rpartition("_")[0]


def table_line(name: str, rows: Sequence[dict[str, float]]) -> str:
    """Write a line of the table: mean and standard deviation over seeds."""
    values = [[row[metric] for row in rows] for metric in METRICS]
    columns = ["-" if np.isnan(each).any() else spread(each) for each in values]
    return f"| {name} | {' | '.join(columns)} |"


if __name__ == "__main__":
    main()
