"""Embeddings of normal cases and of cases to report, read from a folder of measured data.

The folder holds ``normal``, and perhaps ``validation``; the cases to report are in ``anomalous/images`` with
``anomalous/labels``, or in ``test`` with or without ``labels``. Where there are labels a case without one is healthy;
otherwise it is healthy if its name, or the folder that it is in, begins with ``normal``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.bundle import ConfigParser
from monai.transforms import Compose, EnsureChannelFirstd, ResampleToMatch

from scripts.data import LoadImageFiled, OrientUprightd
from scripts.data.cases import CaseDataset, find_cases
from scripts.training.embeddings import CachedEmbeddings, EmbeddingDataset

ROOT = Path(__file__).resolve().parent.parent


class Case(NamedTuple):
    """A case to report.

    Attributes:
        name: its name.
        label: its label ``[S,H,W]``; None if it has none.
        is_ill: whether it is anomalous.
        half: settings are chosen on the ``first`` half of the subjects, and reported on the ``second``.
    """

    name: str
    label: np.ndarray | None
    is_ill: bool
    half: str


class Population(NamedTuple):
    """Embeddings of all cases, and the cases to report.

    Attributes:
        train: normal cases to fit on.
        validation: held-out normal cases.
        normal_images: preprocessed images of both, in this order.
        test: cases to report.
        test_images: their preprocessed images.
        cases: their names and labels.
        network: network with the encoder, not fitted.
        inferer: cuts a volume into slices.
    """

    train: CachedEmbeddings
    validation: CachedEmbeddings
    normal_images: Sequence[dict[str, Any]]
    test: CachedEmbeddings
    test_images: Sequence[dict[str, Any]]
    cases: list[Case]
    network: Any
    inferer: Any


def config(name: str, **overrides: Any) -> ConfigParser:
    """Read one of the bundle's configs, with other values of some ids."""
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / f"{name}.json")
    parser.update({"bundle_root": str(ROOT), "show_progress": False, **overrides})
    return parser


def embed(
    folder: Path,
    store: Path,
    settings: Mapping[str, Any] | None = None,
    normals: Sequence[Path] = (),
    max_slices: int | None = None,
) -> Population:
    """Embed all cases with the bundle's configs and some other settings.

    Args:
        folder: the cases to report, and normals.
        store: where embeddings are kept.
        settings: values of other ids of the config.
        normals: folders of the normals, of which some are held out; those of ``folder`` by default.
        max_slices: slices of a volume among ``normals`` that are used, evenly; None for all.
    """
    validation = folder / "validation"
    has_validation = validation.is_dir() and not normals
    train = config(
        "train",
        dataset_dir=str(folder / "normal"),
        validation_dir=str(validation) if has_validation else None,
        embedding_store=str(store),
    )
    if normals:
        train["normals"] = [
            case for each in normals for case in thinned_cases(each, store.with_name("thinned_output"), max_slices)
        ]
    train.update(dict(settings or {}))
    network, inferer, cache = (train.get_parsed_content(name) for name in ("network", "inferer", "embedding_cache"))
    transform = train.get_parsed_content("preprocessing")
    is_split = (folder / "anomalous").is_dir()
    images, labels = ("anomalous/images", "anomalous/labels") if is_split else ("test", "labels")
    found = find_cases(folder / images)
    labelled = find_cases(folder / labels) if (folder / labels).is_dir() else []
    label_of = {case["case"]: case["image"] for case in labelled}
    parts: list[Any] = [*train.get_parsed_content("split"), found]
    datasets: list[Any] = [CaseDataset(cases, transform) for cases in parts]
    embedded = [EmbeddingDataset(each, network, inferer, cache=cache, progress=False).compute() for each in datasets]
    halves = halves_of([case["case"] for case in found], bool(label_of))
    cases: list[Case] = []
    for case in found:
        label = None
        if case["case"] in label_of:
            label = read_label(label_of[case["case"]], inferer, datasets[2][len(cases)]["image"])
        is_ill = label is not None if label_of else not case["case"].startswith("normal")
        cases.append(Case(case["case"], label, is_ill, halves[case["case"]]))
    normal_images: Any = CaseDataset([*parts[0], *parts[1]], transform)
    train_set, validation_set, test = embedded
    return Population(train_set, validation_set, normal_images, test, datasets[2], cases, network, inferer)


def thinned_cases(folder: Path, target: Path, max_slices: int | None) -> list[dict[str, Any]]:
    """Find the cases of a folder; volumes of more axial slices than wanted are copied with fewer of them."""
    cases = find_cases(folder)
    volumes = [case for case in cases if max_slices and ".nii" in case["image"]]
    for case in volumes:
        image: Any = nib.load(case["image"])
        if image.shape[2] > max_slices:
            copy = target / f"{max_slices}" / folder.parent.name / folder.name / f"{case['case']}.nii.gz"
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists():
                nib.save(image.slicer[:, :, :: -(-image.shape[2] // max_slices)], copy)
            case["image"] = str(copy)
    return cases


def read_label(path: str, inferer: Any, image: Any) -> np.ndarray:
    """Read a label as the slices ``[S,H,W]`` of a preprocessed image that the network sees."""
    label = read_upright(path)[:1]
    if label.shape[1:] != image.shape[1:]:  # the image has another field of view
        label = ResampleToMatch(mode="nearest", padding_mode="zeros")(label.float(), img_dst=image)
    (slices,) = inferer.slices(label.unsqueeze(0))
    return np.asarray(slices[:, 0]) > 0


def read_upright(path: str) -> Any:
    """Read an image ``[C,H,W]`` or ``[C,H,W,D]`` in the orientation of the bundle's preprocessing."""
    upright = Compose([LoadImageFiled("image"), EnsureChannelFirstd("image"), OrientUprightd("image")])
    return upright({"image": path})["image"]


def halves_of(names: Sequence[str], has_subjects: bool) -> dict[str, str]:
    """Divide cases by subject, ``sub-07`` of ``normal_sub-07_T1w``; by turns if names do not begin with a subject."""
    if not has_subjects:
        return {name: ("first", "second")[index % 2] for index, name in enumerate(sorted(names))}
    subject_of = {name: re.sub("^(ab)?normal_", "", name).rpartition("_")[0] for name in names}
    subjects = sorted(set(subject_of.values()))
    first = subjects[: len(subjects) // 2]
    return {name: "first" if subject in first else "second" for name, subject in subject_of.items()}
