"""What is known of a case: its outlined voxels, that it is healthy, or that it is not."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation

from ..errors import InputError
from .cases import UNREADABLE, find_cases, sentence
from .images import ImageFileReader, load_itk, needs_itk

# Of one voxel's smaller edge: how far off the corners of a label may lie. Tools round affines in their own ways.
TOLERANCE = 0.1


class GroundTruth(NamedTuple):
    """What is known of a case.

    Attributes:
        is_anomalous: None where nothing is known.
        mask: true where a voxel is anomalous, in the order of the image; None where voxels are not known.
    """

    is_anomalous: bool | None
    mask: np.ndarray | None


class CaseLabels:
    """Finds and reads the labels of cases.

    A label belongs to the case of the same name, as `find_cases` names both. A case without a label is healthy where
    ``normal_pattern`` says so. Without any ``label_dir``, a case that is not healthy is anomalous, and nothing is known
    of its voxels.

    Args:
        cases: as from `find_cases`.
        label_dir: folder of labels, 0 and 1 (or 0 and 255, as pictures have it).
        label_pattern: see `find_cases`.
        normal_pattern: names of cases that are healthy, with ``*`` and ``?``.

    Raises:
        InputError: neither labels nor a pattern, no such folder, or not one label of a case's name.
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
        """What is known of a case.

        Args:
            case: its name.
            image: ``[C,...]`` in the orientation of its file.

        Returns:
            See `GroundTruth`.

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


def read_label(label: Mapping[str, Any], image: MetaTensor) -> np.ndarray:
    """Read a label onto the voxels of its image.

    Args:
        label: as from `find_cases`.
        image: ``[C,...]`` in the orientation of its file. A label stored in another order of axes is turned.

    Returns:
        True where the image is anomalous.

    Raises:
        InputError: it cannot be read, is of another shape or lies elsewhere, or has values other than 0 and 1 (or 255).
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
            f"the label has {_by(loaded.shape[1:])} voxels and the image {_by(image.shape[1:])}; expected the same, so "
            "resample the label onto the image"
        )
    if image.ndim == 4:
        _check_place(np.asarray(loaded.affine, dtype=float), affine, image.shape[1:])
    return _binary(np.asarray(loaded))


def _check_place(of_label: np.ndarray, of_image: np.ndarray, shape: Sequence[int]) -> None:
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(shape) - 1)
    apart = nib.affines.apply_affine(of_label, corners) - nib.affines.apply_affine(of_image, corners)
    farthest = np.linalg.norm(apart, axis=1).max()
    if farthest > TOLERANCE * nib.affines.voxel_sizes(of_image).min():
        raise InputError(
            f"the label lies up to {farthest:.3g} mm from the image by its affine; expected the same affine, so "
            "resample the label onto the image or correct its header"
        )


def _binary(values: np.ndarray) -> np.ndarray:
    """Label ``[C,...]`` -> ``[...]``; a picture may hold the same mask in several channels, and an alpha channel."""
    channels = values[: len(values) - 1] if len(values) in (2, 4) else values
    positive = 255 if channels.max() == 255 else 1
    wrong = np.unique(channels[(channels != 0) & (channels != positive)])
    if len(wrong) or (channels != channels[0]).any():
        given = ", ".join(f"{value:g}" for value in wrong[:5]) or "several colours"
        raise InputError(
            f"the label has values other than 0 and 1 ({given}); expected 0 for normal and 1 (or 255) for anomalous, "
            "so make one class of all that is anomalous"
        )
    return channels[0] != 0


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)
