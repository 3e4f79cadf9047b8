"""The quality of each anomaly score: `python -m benchmarks.quality --data FOLDER`.

FOLDER is one of `population`. Settings are chosen on the first half of the subjects, the second is for the report. All
scores use the same embeddings, are calibrated on the foreground of the validation normals, and become maps as at
inference.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import roc_auc_score

from scripts.inference.measurements import image_score
from scripts.metrics.functional import pixel_metrics
from scripts.metrics.histograms import bin_edges, count_pixels
from scripts.models.mixture import DirichletProcessMixture
from scripts.training.cross_fit import CrossFit, HeldOut
from scripts.training.embeddings import CachedEmbeddings
from scripts.training.held_out_scores import HeldOutScores

from .cost import seconds_of
from .memory_bank import MemoryBank
from .population import ROOT, Population, config, embed

VARIANTS: dict[str, dict[str, Any]] = {
    "last block": {"layers": [-1]},  # the paper's
    "ninth block": {"layers": [8]},  # the default up to 0.8
    "four blocks": {},
    "four blocks, two sizes": {"scales": [1.0, 0.75]},
    "four blocks, no field of view": {"field_of_view_mm": None},
    "four blocks, scaled by tissue": {"intensities": {"_target_": "scripts.data.ScaleTissued", "keys": "image"}},
}
METRICS = ("pixel_auroc", "pixel_ap", "aupro_0.3", "image_auroc")


class KMeans:
    """K-means with as many centres as a mixture has components, and the cosine distance to the nearest one."""

    score_kinds = ("cosine",)

    def __init__(self, train: CachedEmbeddings, seed: int) -> None:
        patches = train.sample(100000, seed).numpy()
        fitted = MiniBatchKMeans(500, random_state=seed, batch_size=12288, n_init=1).fit(patches)
        self.means = torch.nn.functional.normalize(torch.from_numpy(fitted.cluster_centers_).float(), dim=1)
        self.n_numbers = self.means.numel()

    def anomaly_score(self, patches: torch.Tensor, kind: str) -> torch.Tensor:
        """Return the distances ``[N]`` of patches ``[N,D]``."""
        return 1 - (patches @ self.means.T).amax(1)


class Row(NamedTuple):
    """Metrics of a score with one seed, by half of the subjects."""

    metrics: dict[str, dict[str, float]]
    n_numbers: int


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--normals", type=Path, nargs="+", default=[], help="folders to fit on instead of FOLDER/normal"
    )
    parser.add_argument("--max_slices", type=int, help="slices of a volume among --normals that are used, evenly")
    parser.add_argument("--embedding_store", type=Path, default=ROOT / "quality_output")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks" / "quality_table.md")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--smoothing", nargs="+", type=float, default=[0.0, config("inference")["patch_smoothing"]])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args()
    lines = [
        f"`python -m benchmarks.quality --data FOLDER --seeds {options.seeds} --epochs {options.epochs}`: mean and "
        "standard deviation over seeds.",
    ]
    for title in options.variants:
        data = embed(options.data, options.embedding_store, VARIANTS[title], options.normals, options.max_slices)
        lines += ["", f"**{title}**", "", *HEADER]
        print("\n".join(lines[-5:]), flush=True)
        for name in options.models:
            rows: dict[tuple[str, str], list[Row]] = {}
            shares: dict[str, float] = {}
            for seed in range(1 if name in ("memory_bank", "intensity") else options.seeds):
                model = MODELS[name](data, seed, options.epochs)
                for kind, suffix, row in evaluate(data, model, options.smoothing):
                    rows.setdefault((kind, suffix), []).append(row)
                    if model is not None and kind not in shares:
                        shares[kind] = share_of_encoder(data, partial(model.anomaly_score, kind=kind))
            for (kind, suffix), rows_per_seed in rows.items():
                lines.append(table_line(f"{name}, {kind}{suffix}", rows_per_seed, shares.get(kind, 0.0)))
                print(lines[-1], flush=True)
        options.output.write_text("\n".join(lines) + "\n")


HEADER = [
    "| score | chosen on: AUROC | AP | **held out**: AUROC | AP | AUPRO | all: AUROC | AP | image AUROC | share of the "
    "encoder's time | numbers kept |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
]
COLUMNS = (
    *(("first", metric) for metric in METRICS[:2]),
    *(("second", metric) for metric in METRICS[:3]),
    *(("both", metric) for metric in ("pixel_auroc", "pixel_ap", "image_auroc")),
)


def spread(values: Sequence[float]) -> str:
    """Write mean and standard deviation of the values of all seeds."""
    if np.isnan(values).any():
        return "-"
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def table_line(name: str, rows: Sequence[Row], share: float) -> str:
    """Write a line of the table: mean and standard deviation over seeds."""
    values = [spread([row.metrics[half].get(metric, np.nan) for row in rows]) for half, metric in COLUMNS]
    return f"| {name} | {' | '.join(values)} | {share:.1%} | {rows[0].n_numbers:,} |"


def mixture(
    data: Population,
    seed: int,
    epochs: int,
    settings: Mapping[str, Any] | None = None,
    settling_epochs: int | None = None,
) -> DirichletProcessMixture:
    """Fit a Dirichlet process mixture with the settings of the configs and some others."""
    default = config("train")
    names = ("n_components", "covariance_type", "rank", "reg_covar", "distribution")
    chosen = {**{name: default[name] for name in names}, **(settings or {})}
    data.network.mixture = DirichletProcessMixture(n_features=data.train.n_features, **chosen)
    tracker: Any = SimpleNamespace(best_epoch=epochs)
    n_settling = default["settling_epochs"] if settling_epochs is None else settling_epochs
    fits = CrossFit(data.network, tracker, data.train, data.validation, seed=seed, settling_epochs=n_settling)
    fitted = fits.fit(data.train)
    if fitted.distribution == "student_t":
        fitted.fit_degrees_of_freedom(data.validation.sample(20000, seed))
    return fitted


def memory_bank(normals: CachedEmbeddings) -> MemoryBank:
    """Store all patches of the normals, for an exact search."""
    return MemoryBank((normals[index].float().numpy() for index in range(len(normals))), normals.n_features)


MODELS: dict[str, Callable[[Population, int, int], Any]] = {
    "student_t": mixture,
    "gaussian": partial(mixture, settings={"distribution": "gaussian"}),  # the default up to 0.8, but for the passes
    "gaussian_floor": partial(mixture, settings={"distribution": "gaussian", "reg_covar": 3e-4}),
    "paper": partial(mixture, settings={"distribution": "gaussian", "covariance_type": "diag"}, settling_epochs=0),
    "k_means": lambda data, seed, epochs: KMeans(data.train, seed),
    "memory_bank": lambda data, seed, epochs: memory_bank(data.train),
    "intensity": lambda data, seed, epochs: None,
}


def evaluate(data: Population, model: Any, smoothing: Sequence[float]) -> Iterator[tuple[str, str, Row]]:
    """Compute the metrics of each score of a model, or of the grey values if there is no model.

    Yields:
        The score, the smoothing in words if there is any, and the metrics.
    """
    if model is None:
        maps = [intensities(image["image"], data) for image in data.test_images]
        yield "grey value", "", Row(metrics_of(maps, data), 0)
        return
    if isinstance(model, DirichletProcessMixture):
        n_numbers = sum(value.numel() for name, value in model.gaussians.named_buffers() if "statistic" not in name)
    else:
        n_numbers = model.n_numbers
    network = data.network
    network.patch_smoothing, network.mixture.score_kinds = 0.0, tuple(model.score_kinds)
    held_out, test = (HeldOutScores(network, [HeldOut(model, cases)]) for cases in (data.validation, data.test))
    for row, kind in enumerate(model.score_kinds):
        for network.patch_smoothing in smoothing:
            normal = []
            for case in held_out.cases:
                foreground = case[0].geometry.patch_foreground(network)
                normal.append(
                    smoothed(torch.from_numpy(np.load(case[0].scores)[row]), case, network).numpy()[foreground]
                )
            median, threshold = np.quantile(np.concatenate(normal), [0.5, 0.99])

            calibrate = partial(calibrated, network=network, median=median, threshold=threshold)
            maps = [test.anomaly_map(case, row, partial(calibrate, case=case)) for case in test.cases]
            suffix = f", smoothed by {network.patch_smoothing:g}" if network.patch_smoothing else ""
            yield kind, suffix, Row(metrics_of(maps, data), n_numbers)


def calibrated(scores: torch.Tensor, case: Any, network: Any, median: float, threshold: float) -> torch.Tensor:
    """Smooth the scores ``[s,h*w]`` of a case and calibrate them."""
    return (smoothed(scores, case, network) - median) / (threshold - median)


def smoothed(scores: torch.Tensor, case: Any, network: Any) -> torch.Tensor:
    """Smooth the scores ``[s,h*w]`` of a case of one view on its grid of patches."""
    grid = network.patch_grid(*case[0].geometry.foreground.shape[1:])
    return network.smooth(scores.view(-1, *grid)).flatten(1)


def intensities(image: Any, data: Population) -> np.ndarray:
    """Return the scaled grey values ``[S,H,W]`` of an image as the network sees it."""
    (slices,) = data.inferer.slices(image.unsqueeze(0))
    return np.asarray(slices.amax(1))


def metrics_of(maps: Sequence[np.ndarray], data: Population) -> dict[str, dict[str, float]]:
    """Compute the metrics of maps ``[S,H,W]`` of all cases, for both halves and for all."""
    edges, values = bin_edges(), {}
    foregrounds = [data.test.geometry(index).foreground for index in range(len(maps))]
    scores = [image_score(*each) for each in zip(maps, foregrounds, strict=True)]
    counts = [
        count_pixels(anomaly_map, np.zeros(anomaly_map.shape, bool) if case.label is None else case.label, edges)
        for anomaly_map, case in zip(maps, data.cases, strict=True)
    ]
    for half in ("first", "second", "both"):
        indices = [index for index, case in enumerate(data.cases) if half in (case.half, "both")]
        values[half] = pixel_metrics(np.sum([counts[index] for index in indices], axis=0), edges, {})
        ill = [data.cases[index].is_ill for index in indices]
        if 0 < sum(ill) < len(ill):
            values[half]["image_auroc"] = roc_auc_score(ill, [scores[index] for index in indices])
    return values


@torch.no_grad()
def share_of_encoder(data: Population, score: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Measure the time of scoring a slice over that of embedding it, in turns."""
    (slices,) = data.inferer.slices(data.test_images[0]["image"].unsqueeze(0))
    slices = slices[len(slices) // 2 :][:1]
    patches = data.network.embed(slices).flatten(2).transpose(1, 2).flatten(0, 1)
    seconds: dict[str, list[float]] = {"encoder": [], "score": []}
    for _ in range(5):
        seconds["encoder"].append(seconds_of(partial(data.network.embed, slices)))
        seconds["score"].append(seconds_of(partial(score, patches)))
    return min(seconds["score"]) / min(seconds["encoder"])


if __name__ == "__main__":
    main()
