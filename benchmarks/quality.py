"""The quality of each anomaly score: `python -m benchmarks.quality --data FOLDER`.

FOLDER holds ``normal``, ``validation`` and ``anomalous/images`` with ``anomalous/labels``. The anomalous cases are
halved by subject: the first half is for the choice of settings, the second for the report. All scores use the same
embeddings, and maps are made as at inference.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import LoadImage
from sklearn.cluster import MiniBatchKMeans

from scripts.data.cases import CaseDataset, find_cases
from scripts.inference.inferer import DPMMInferer
from scripts.metrics.functional import pixel_metrics
from scripts.metrics.histograms import bin_edges, count_pixels
from scripts.models.mixture import DirichletProcessMixture
from scripts.models.network import PatchAnomalyNetwork
from scripts.training.embeddings import CachedEmbeddings, EmbeddingDataset

from .cost import seconds_of
from .fit import fit_epochs
from .memory_bank import MemoryBank

ROOT = Path(__file__).resolve().parent.parent
VARIANTS: dict[str, dict[str, Any]] = {
    "last block": {"layers": [-1]},  # the paper's
    "ninth block": {"layers": [8]},
    "ninth block, two sizes": {"layers": [8], "scales": [1.0, 0.75]},
    "ninth block, scaled by tissue": {
        "layers": [8],
        "intensities": {"_target_": "scripts.data.ScaleTissued", "keys": "image"},
    },
}
Score = Callable[[torch.Tensor], torch.Tensor]  # patches [N,D] -> scores [N]


class Case(NamedTuple):
    """An anomalous case: preprocessed image, embeddings and ground truth."""

    image: Any
    embeddings: CachedEmbeddings
    label: np.ndarray
    subject: str


class Variant(NamedTuple):
    """Embeddings of all sets with one group of encoder settings."""

    train: CachedEmbeddings
    validation: CachedEmbeddings
    cases: list[Case]
    network: PatchAnomalyNetwork
    inferer: DPMMInferer
    postprocessing: Callable[[dict[str, Any]], dict[str, Any]]


class Model(NamedTuple):
    """A fitted model and its scores."""

    name: str
    scores: Mapping[str, Score]
    n_numbers: int


class Row(NamedTuple):
    """Metrics of a score with one seed, on both halves of the cases."""

    selection: dict[str, float]
    held_out: dict[str, float]
    n_numbers: int


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--embedding_store", type=Path, default=ROOT / "quality_output")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks" / "quality_table.md")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args()
    lines = [
        f"`python -m benchmarks.quality --data FOLDER --seeds {options.seeds} --epochs {options.epochs}`: mean and "
        "standard deviation over seeds.",
    ]
    for title in options.variants:
        variant = embed(options.data, VARIANTS[title], options.embedding_store)
        lines += ["", f"**{title}**", "", *HEADER]
        print("\n".join(lines[-5:]), flush=True)
        for name in options.models:
            rows: dict[str, list[Row]] = {}
            shares: dict[str, float] = {}
            for seed in range(1 if name == "memory_bank" else options.seeds):
                model = MODELS[name](variant.train, seed, options.epochs)
                for kind, score in model.scores.items():
                    label = f"{model.name}, {kind}"
                    rows.setdefault(label, []).append(evaluate(variant, model, score))
                    if label not in shares:
                        shares[label] = share_of_encoder(variant, score)
            for label, rows_per_seed in rows.items():
                lines.append(table_line(label, rows_per_seed, shares[label]))
                print(lines[-1], flush=True)
        options.output.write_text("\n".join(lines) + "\n")


HEADER = [
    "| score | AUROC, chosen on | AP | AUROC, **held out** | AP | AUPRO | share of the encoder's time | numbers kept |",
    "|---|---|---|---|---|---|---|---|",
]


def spread(values: Sequence[float]) -> str:
    """Write mean and standard deviation of the values of all seeds."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def table_line(name: str, rows: Sequence[Row], share: float) -> str:
    """Write a line of the table: mean and standard deviation over seeds."""
    columns = [
        *(spread([row.selection[metric] for row in rows]) for metric in ("pixel_auroc", "pixel_ap")),
        *(spread([row.held_out[metric] for row in rows]) for metric in ("pixel_auroc", "pixel_ap", "aupro_0.3")),
        f"{share:.1%}",
        f"{rows[0].n_numbers:,}",
    ]
    return f"| {name} | {' | '.join(columns)} |"


def embed(data: Path, overrides: Mapping[str, Any], store: Path) -> Variant:
    """Embed all sets with the bundle's configs and some other settings."""
    train = config("train", dataset_dir=data / "normal", validation_dir=data / "validation", embedding_store=store)
    inference = config("inference")
    for parser in (train, inference):
        for name, value in overrides.items():
            parser[name] = value
    network, inferer = train.get_parsed_content("network"), train.get_parsed_content("inferer")
    anomalous = find_cases(data / "anomalous" / "images")
    labels = {case["case"]: case["image"] for case in find_cases(data / "anomalous" / "labels")}
    images = CaseDataset(anomalous, inference.get_parsed_content("preprocessing"))
    read = LoadImage(image_only=True)
    cases = []
    cache = train.get_parsed_content("embedding_cache")
    for index, case in enumerate(anomalous):
        dataset: Any = CaseDataset([case], images.transform)
        embeddings = EmbeddingDataset(dataset, network, inferer, cache=cache, progress=False).compute()
        label = np.asarray(read(labels[case["case"]])) > 0
        cases.append(Case(images[index], embeddings, label, case["case"].split("_")[0]))
    normals, held_out = (train.get_parsed_content(f"{name}#embeddings").compute() for name in ("train", "validate"))
    return Variant(normals, held_out, cases, network, inferer, inference.get_parsed_content("postprocessing"))


def config(name: str, **overrides: Any) -> ConfigParser:
    """Read one of the bundle's configs, with other values of some ids."""
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / f"{name}.json")
    parser.update({"bundle_root": str(ROOT), "show_progress": False, **{k: str(v) for k, v in overrides.items()}})
    return parser


def mixture(
    covariance_type: str, train: CachedEmbeddings, seed: int, epochs: int, reg_covar: float | None = None
) -> Model:
    """Fit a Dirichlet process mixture, for all its score kinds; rank and `reg_covar` are those of the configs."""
    default = config("train")
    reg_covar = default["reg_covar"] if reg_covar is None else reg_covar
    fitted = DirichletProcessMixture(500, train.n_features, covariance_type, reg_covar=reg_covar, rank=default["rank"])
    fitted.initialize(train.sample(20000, seed), generator=torch.Generator().manual_seed(seed))
    fit_epochs(fitted, train, epochs, seed)
    scores = {score: scorer(fitted, score) for score in fitted.score_kinds}
    parameters = (fitted.means, fitted.covariances, getattr(fitted.gaussians, "loadings", torch.empty(0)))
    return Model(f"mixture, {covariance_type}", scores, sum(tensor.numel() for tensor in parameters))


def scorer(mixture: DirichletProcessMixture, kind: str) -> Score:
    """Return the function of one score kind of a mixture."""
    return lambda patches: mixture.anomaly_score(patches, kind)


def k_means(train: CachedEmbeddings, seed: int, epochs: int) -> Model:
    """Fit k-means with as many centres as a mixture has components."""
    patches = train.sample(100000, seed).numpy()
    fitted = MiniBatchKMeans(500, random_state=seed, batch_size=12288, n_init=1).fit(patches)
    centres = torch.nn.functional.normalize(torch.from_numpy(fitted.cluster_centers_).float(), dim=1)
    return Model("k-means", {"cosine": lambda patches: 1 - (patches @ centres.T).amax(1)}, centres.numel())


def memory_bank(train: CachedEmbeddings, seed: int, epochs: int) -> Model:
    """Store all patches of the normals, for an exact search."""
    bank = MemoryBank((train[index].float().numpy() for index in range(len(train))), train.n_features)
    scores = {"cosine": lambda patches: torch.from_numpy(bank.distances(patches.numpy()))}
    return Model("memory bank", scores, bank.n_numbers)


MODELS: dict[str, Callable[[CachedEmbeddings, int, int], Model]] = {
    "diag": partial(mixture, "diag", reg_covar=1e-6),  # the paper's
    "low_rank": partial(mixture, "low_rank"),
    "k_means": k_means,
    "memory_bank": memory_bank,
}


@torch.no_grad()
def evaluate(variant: Variant, model: Model, score: Score) -> Row:
    """Compute the metrics of the maps of a score, calibrated on the validation normals."""
    stride = max(1, variant.validation.n_patches // 20000)
    normal = torch.cat([score(variant.validation[i][::stride].float()) for i in range(len(variant.validation))])
    median, quantile = np.quantile(normal.numpy(), [0.5, 0.99])
    edges = bin_edges()
    counts: dict[str, np.ndarray] = {}
    for case in variant.cases:
        embeddings = case.embeddings
        scores = [(score(embeddings[i].float()) - median) / (quantile - median) for i in range(len(embeddings))]
        counts_per_case = count_pixels(map_of(variant, case, scores), case.label, edges)
        counts[case.subject] = counts.get(case.subject, 0) + counts_per_case
    counts_per_subject = [counts[subject] for subject in sorted(counts)]
    middle = len(counts_per_subject) // 2
    halves = (sum(counts_per_subject[:middle]), sum(counts_per_subject[middle:]))
    selection, held_out = (pixel_metrics(np.asarray(half), edges, {}) for half in halves)
    return Row(selection, held_out, model.n_numbers)


@torch.no_grad()
def share_of_encoder(variant: Variant, score: Score) -> float:
    """Measure the time of scoring a slice over that of embedding it, in turns."""
    case = variant.cases[0]
    (slices,) = variant.inferer.slices(case.image["image"].unsqueeze(0))
    seconds: dict[str, list[float]] = {"encoder": [], "score": []}
    for index in range(5):
        patches = case.embeddings[index].float()
        seconds["encoder"].append(seconds_of(partial(variant.network.embed, slices[index : index + 1])))
        seconds["score"].append(seconds_of(partial(score, patches)))
    return min(seconds["score"]) / min(seconds["encoder"])


def map_of(variant: Variant, case: Case, scores: Sequence[torch.Tensor]) -> np.ndarray:
    """Make the map of a case, in the voxels of its file, from the scores ``[patches]`` of its slices."""
    remaining = iter(scores)

    def network(slices: torch.Tensor) -> torch.Tensor:
        height, width = variant.network.patch_grid(*slices.shape[2:])
        batch = torch.stack([next(remaining) for _ in slices]).view(-1, 1, height, width)
        return variant.network.to_pixels(batch, *slices.shape[2:])

    image = case.image["image"]
    pred = variant.inferer(image.unsqueeze(0), network)[0]
    return np.asarray(variant.postprocessing({"image": image, "pred": pred})["map"][0])


if __name__ == "__main__":
    main()
