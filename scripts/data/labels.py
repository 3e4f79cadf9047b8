"""Ground truth of cases: masks of anomalous voxels, or labels of whole cases."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation, Transform

from ..errors import InputError
from .cases import UNREADABLE, find_cases, sentence
from .images import ImageFileReader, load_itk, needs_itk, shape_text

# Maximal distance of the corners of a label from those of its image, as a fraction of the smallest edge of a voxel:
# tools round affines differently.
MAX_CORNER_DISTANCE = 0.1


class GroundTruth(NamedTuple):
    """Ground truth of a case.

    Attributes:
        is_anomalous: whether the case is anomalous; None if unknown.
        mask: true for anomalous voxels, in the order of the image; None if unknown.
    """

    is_anomalous: bool | None
    mask: np.ndarray | None


class CaseLabels:
    """Find and read the labels of cases.

    A label belongs to the case of the same name, as `find_cases` names both. A case without a label is healthy if its
    name matches ``normal_pattern``. Without a ``label_dir``, every other case is anomalous, and its mask is unknown.

    Args:
        cases: cases of `find_cases`.
        label_dir: folder of labels with values 0 and 1 (or 0 and 255, as in pictures).
        label_pattern: file names of labels, see `find_cases`.
        normal_pattern: names of healthy cases, with ``*`` and ``?``.

    Raises:
        InputError: neither labels nor a pattern, no such folder, or no label with the name of a case.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        label_dir: str | os.PathLike | None = None,
        label_pattern: str = "*",
        normal_pattern: str | None = None,
    ) -> None:
        if not label_dir and normal_pattern is None:
            raise InputError(
                "Evaluation needs to know what is anomalous: give label_dir, a folder of labels named like the cases, "
                "or normal_pattern, which names of cases are healthy."
            )
        self.normal_pattern = normal_pattern
        self.labels: dict[str, dict[str, Any]] | None = None
        if label_dir:
            self.labels = {label["case"]: label for label in find_cases(label_dir, label_pattern)}
            if any(needs_itk(label.get("image", ".nii")) for label in self.labels.values()):
                load_itk()  # before there are threads
            if not any(case["case"] in self.labels for case in cases):
                raise InputError(
                    f"No label in {label_dir} has a case's name: labels are named like {next(iter(self.labels))!r}, "
                    f"cases like {cases[0]['case']!r}; rename them, or set file_pattern and label_pattern."
                )

    def truth(self, case: str, image: MetaTensor) -> GroundTruth:
        """Read the ground truth of a case.

        Args:
            case: name of the case.
            image: its image ``[C,...]`` in the orientation of the file.

        Returns:
            The ground truth.

        Raises:
            InputError: the label cannot be used.
        """
        is_healthy = self.normal_pattern is not None and fnmatch.fnmatch(case, self.normal_pattern)
        if self.labels is None:
            return GroundTruth(not is_healthy, None)
        if case in self.labels:
            mask = read_label(self.labels[case], image)
            return GroundTruth(bool(mask.any()), mask)
        return GroundTruth(False, np.zeros(image.shape[1:], bool)) if is_healthy else GroundTruth(None, None)


class AddGroundTruthd(Transform):
    """Add the ground truth of a case as ``truth``.

    Args:
        labels: labels of the cases.
    """

    def __init__(self, labels: CaseLabels) -> None:
        self.labels = labels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the ground truth of ``case`` onto its ``image`` ``[C,...]`` in the orientation of the file.

        Raises:
            InputError: the label cannot be used.
        """
        return {**data, "truth": self.labels.truth(data["case"], data["image"])}


def read_label(label: Mapping[str, Any], image: MetaTensor) -> np.ndarray:
    """Read a label onto the voxels of its image.

    Args:
        label: item of `find_cases`.
        image: ``[C,...]`` in the orientation of its file. A label with another order of axes is reoriented.

    Returns:
        Mask ``[...]``, true for anomalous voxels.

    Raises:
        InputError: the label cannot be read, has another shape, position or values than 0 and 1 (or 255).
    """
    if "error" in label:
        raise InputError(f"the label cannot be used: {label['error']}")
    try:
        loaded: Any = LoadImage(ensure_channel_first=True)(label["image"], ImageFileReader())
    except Exception as error:
        reason = sentence(error, "read", UNREADABLE)
        raise InputError(f"the label: {reason}") from error
    affine = np.asarray(image.meta.get("original_affine", image.affine), dtype=float)
    if image.ndim == 4 and loaded.ndim == 4:
        loaded = Orientation(axcodes="".join(nib.orientations.aff2axcodes(affine)), labels=None)(loaded)
    if loaded.shape[1:] != image.shape[1:]:
        raise InputError(
            f"the label has {shape_text(loaded.shape[1:])} voxels and the image {shape_text(image.shape[1:])}; "
            "expected the same, so resample the label onto the image"
        )
    if image.ndim == 4:
        _check_position(np.asarray(loaded.affine, dtype=float), affine, image.shape[1:])
    return _binary(np.asarray(loaded))


def _check_position(label_affine: np.ndarray, image_affine: np.ndarray, shape: Sequence[int]) -> None:
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(shape) - 1)
    offsets = nib.affines.apply_affine(label_affine, corners) - nib.affines.apply_affine(image_affine, corners)
    farthest = np.linalg.norm(offsets, axis=1).max()
    if farthest > MAX_CORNER_DISTANCE * nib.affines.voxel_sizes(image_affine).min():
        raise InputError(
            f"the label lies up to {farthest:.3g} mm from the image by its affine; expected the same affine, so "
            "resample the label onto the image or correct its header"
        )


def _binary(values: np.ndarray) -> np.ndarray:
    """Convert a label ``[C,...]`` to ``[...]``; a picture may repeat its mask in channels, next to alpha."""
    channels = values[: len(values) - 1] if len(values) in (2, 4) else values
    positive = 255 if channels.max() == 255 else 1
    other_values = np.unique(channels[(channels != 0) & (channels != positive)])
    if len(other_values) or (channels != channels[0]).any():
        text = ", ".join(f"{value:g}" for value in other_values[:5]) or "several colours"
        raise InputError(
            f"the label has values other than 0 and 1 ({text}); expected 0 for normal and 1 (or 255) for anomalous, "
            "so make one class of all that is anomalous"
        )
    return channels[0] != 0
