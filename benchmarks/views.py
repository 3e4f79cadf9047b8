"""One view against three: `python -m benchmarks.views --data FOLDER`.

FOLDER holds near isotropic volumes of healthy, skull-stripped heads in ``normal``, ``validation`` and ``test``. Lesions
are inserted into the test heads. Every n-th slice of each view is embedded; all figures are of the voxels at which
slices of the three views meet. Rows are for the first half of the test heads, by which a fusion is chosen, and the
second.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from sklearn.metrics import average_precision_score
from tqdm import tqdm

from demo.lesions import Lesion, insert_lesions
from scripts.data.cases import find_cases
from scripts.data.foreground import foreground_mask
from scripts.files import atomic_write
from scripts.inference.inferer import DPMMInferer
from scripts.models.mixture import DirichletProcessMixture
from scripts.models.network import PatchAnomalyNetwork

from .fit import fit_epochs, read_embeddings
from .population import ROOT, config, read_upright

VIEWS = {"axial": 2, "coronal": 0, "sagittal": 1}
FIT_STEP, TEST_STEP = 10, 4
SMALL_MM = 8.0
LESIONS = [
    Lesion("oedema", 20.0),
    Lesion("texture", 13.0),
    Lesion("texture", 7.5),
    Lesion("oedema", 7.5),
    Lesion("texture", 6.0),
    Lesion("oedema", 6.0),
]
FPRS = (1e-2, 1e-3)
FUSIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda maps: maps.mean(0),
    "median": lambda maps: np.median(maps, 0),
    "max": lambda maps: maps.max(0),
    "min": lambda maps: maps.min(0),
}


class Head(NamedTuple):
    """A head whose slices are embedded.

    Attributes:
        name: of its files.
        image: file of the image.
        step: every n-th slice is embedded.
        label: file with the numbers of its lesions; None if it is healthy.
    """

    name: str
    image: Path
    step: int
    label: Path | None = None


class Voxels(NamedTuple):
    """The voxels of the foreground at which slices of the three views meet.

    Attributes:
        scores: raw scores by view ``[3,n]``.
        lesions: number of the lesion of each voxel ``[n]``, 0 for none.
    """

    scores: np.ndarray
    lesions: np.ndarray


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.views", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ROOT / "quality_output" / "views")
    parser.add_argument("--normals", type=int, default=6)
    parser.add_argument("--validation", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--reg_covar", type=float, default=3e-4, help="that for few normals")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    insert(find_cases(options.data / "test"), options.output / "anomalous")
    normals = heads_in(options.data / "normal", FIT_STEP)[: options.normals]
    validation = heads_in(options.data / "validation", FIT_STEP)[: options.validation]
    test = heads_in(options.output / "anomalous" / "images", TEST_STEP, options.output / "anomalous" / "labels")
    network = config("train", field_of_view=None).get_parsed_content("network")
    folder = options.output / "embeddings"
    embed([*normals, *validation, *test], network, folder)
    halves = {"first half": test[: len(test) // 2], "second half": test[len(test) // 2 :]}
    print("| mixture | map | heads | AP | AP, under 8 mm | AP, larger |", *(f"found at {fpr:.1%} |" for fpr in FPRS))
    for title, mixtures in fits(normals, folder, options):
        normal = [voxels_of(head, mixtures, network, folder) for head in tqdm(validation, title, leave=False)]
        ill = {half: [voxels_of(head, mixtures, network, folder) for head in heads] for half, heads in halves.items()}
        for name, fuse in maps_of(normal):
            scores = np.concatenate([fuse(each.scores) for each in normal])
            for half, heads in ill.items():
                print(f"| {title} | {name} | {half} | {' | '.join(evaluate(scores, heads, fuse))} |", flush=True)


def insert(heads: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write the heads with lesions, and the numbers of the lesions of their voxels."""
    for seed, head in enumerate(heads):
        image = nib.nifti1.load(head["image"])
        name = Path(head["image"]).name
        if (folder / "labels" / name).exists():
            continue
        generator = np.random.default_rng(seed)
        spacing = np.asarray(image.header.get_zooms()[:3])
        data, labels = insert_lesions(image.get_fdata(dtype=np.float32), spacing, LESIONS, generator)
        for kind, array in (("images", data), ("labels", labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, image.affine), folder / kind / name)


def heads_in(folder: Path, step: int, labels: Path | None = None) -> list[Head]:
    """List the heads in a folder."""
    images = [Path(case["image"]) for case in find_cases(folder)]
    return [Head(path.name.removesuffix(".nii.gz"), path, step, labels and labels / path.name) for path in images]


def embed(heads: Sequence[Head], network: PatchAnomalyNetwork, folder: Path) -> None:
    """Embed the slices of each view that are not embedded yet: ``[slices, patches, D]``, in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = config("train", field_of_view=None).get_parsed_content("preprocessing")
    for head in tqdm(heads, "embedding"):
        missing = [axis for axis in VIEWS.values() if not embeddings_of(head, axis, folder).exists()]
        if not missing:
            continue
        image = preprocessing({"image": str(head.image)})["image"]
        for axis in missing:
            (slices,) = DPMMInferer(axis).slices(image.unsqueeze(0))
            with torch.inference_mode():
                patches = [
                    network.embed(each[None])[0].flatten(1).T.half() for each in slices[chosen(head, len(slices))]
                ]
            with atomic_write(embeddings_of(head, axis, folder)) as partial, partial.open("wb") as file:
                np.save(file, torch.stack(patches).numpy())


def chosen(head: Head, n_slices: int) -> slice:
    """Return the slices of a view that are embedded."""
    return slice(head.step // 2, n_slices, head.step)


def embeddings_of(head: Head, axis: int, folder: Path) -> Path:
    """Return the file of the embeddings of a view of a head."""
    return folder / f"{head.name}-{axis}-{head.step}.npy"


def fits(
    normals: Sequence[Head], folder: Path, options: argparse.Namespace
) -> Iterator[tuple[str, dict[int, DirichletProcessMixture]]]:
    """Fit mixtures on the slices of all views, then one on those of each; yield the mixture of each view."""
    for n_components in (500, 1500):
        shared = fit(normals, list(VIEWS.values()), folder, options, n_components)
        yield f"one for all views, {n_components} components", dict.fromkeys(VIEWS.values(), shared)
    yield "one for each view", {axis: fit(normals, [axis], folder, options) for axis in VIEWS.values()}


def fit(
    normals: Sequence[Head],
    axes: Sequence[int],
    folder: Path,
    options: argparse.Namespace,
    n_components: int = 500,
) -> DirichletProcessMixture:
    """Fit a mixture on the slices across some axes, unless an earlier run did."""
    default = config("train")
    train = read_embeddings([embeddings_of(head, axis, folder) for head in normals for axis in axes])
    mixture = DirichletProcessMixture(
        n_components,
        train.n_features,
        default["covariance_type"],
        rank=default["rank"],
        reg_covar=options.reg_covar,
    )
    settings = [n_components, *axes, FIT_STEP, len(normals), options.epochs, options.reg_covar, options.seed]
    path = options.output / f"mixture-{'-'.join(map(str, settings))}.pt"
    if path.exists():
        mixture.load_state_dict(torch.load(path, weights_only=True))
    else:
        generator = torch.Generator().manual_seed(options.seed)
        mixture.initialize(train.sample(20000, options.seed), generator=generator)
        fit_epochs(mixture, train, options.epochs, options.seed)
        torch.save(mixture.state_dict(), path)
    return mixture


@torch.inference_mode()
def voxels_of(
    head: Head, mixtures: dict[int, DirichletProcessMixture], network: PatchAnomalyNetwork, folder: Path
) -> Voxels:
    """Score the voxels of a head at which slices of the three views meet."""
    image = np.asarray(read_upright(str(head.image)))
    lattice = np.ix_(*(np.arange(n)[chosen(head, n)] for n in image.shape[1:]))
    foreground = foreground_mask(image)[lattice]
    scores = []
    for axis, mixture in mixtures.items():
        height, width = (n for other, n in enumerate(image.shape[1:]) if other != axis)
        rows, columns = (points.ravel() for other, points in enumerate(lattice) if other != axis)
        grid = network.patch_grid(height, width)
        maps = []
        for patches in np.load(embeddings_of(head, axis, folder)):
            raw = -mixture.score_samples(torch.from_numpy(patches).float())
            maps.append(network.to_pixels(raw.view(1, 1, *grid), height, width)[0, 0][rows][:, columns])
        scores.append(torch.stack(maps).movedim(0, axis).numpy()[foreground])
    label = np.zeros_like(foreground, int)
    if head.label is not None:
        label = np.asarray(read_upright(str(head.label)))[0][lattice].astype(int)
    return Voxels(np.stack(scores), label[foreground])


def maps_of(normal: Sequence[Voxels]) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Yield the maps to compare, as functions of the raw scores ``[3,n]``: single views, and fusions of the three."""
    low, high = np.quantile(np.concatenate([each.scores for each in normal], axis=1), [0.5, 0.99], axis=1)[..., None]
    for index, name in enumerate(VIEWS):
        yield name, lambda scores, index=index: scores[index]  # type: ignore[misc]
    yield "mean of raw scores", FUSIONS["mean"]
    for name, fuse in FUSIONS.items():
        yield f"{name}, calibrated by view", lambda scores, fuse=fuse: fuse((scores - low) / (high - low))  # type: ignore[misc]


def evaluate(normal: np.ndarray, heads: Sequence[Voxels], fuse: Callable[[np.ndarray], np.ndarray]) -> list[str]:
    """Compute average precisions, and the lesions under 8 mm and larger whose highest voxel reaches a limit.

    Args:
        normal: scores of held-out normal voxels ``[n]``, which set the limits.
        heads: heads with lesions.
        fuse: see `maps_of`.

    Returns:
        The columns of the table.
    """
    scores = np.concatenate([fuse(head.scores) for head in heads])
    lesions = np.concatenate([head.lesions for head in heads])
    is_small = np.array([False, *(lesion.diameter < SMALL_MM for lesion in LESIONS)])
    of_kind = {"all": lesions > 0, "small": is_small[lesions], "large": (lesions > 0) & ~is_small[lesions]}
    columns = []
    for wanted in of_kind.values():
        counted = wanted | (lesions == 0)
        columns.append(f"{average_precision_score(wanted[counted], scores[counted]):.3f}")
    peaks = [
        (is_small[number], fuse(head.scores)[head.lesions == number].max())
        for head in heads
        for number in np.unique(head.lesions[head.lesions > 0])
    ]
    for fpr in FPRS:
        limit = np.quantile(normal, 1 - fpr)
        counts = [[peak >= limit for small, peak in peaks if small == wanted] for wanted in (True, False)]
        columns.append(", ".join(f"{sum(found)} of {len(found)}" for found in counts))
    return columns


if __name__ == "__main__":
    main()
