"""Check of labels: a file that is no label of its image would make every later fit fail.

The module is installed in the folder of the app and imports no module of the bundle.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from monai.transforms import LoadImage

MAX_VALUE = 65535
MAX_HEADER = 2**20  # bytes of a NRRD file that are searched
MAX_SHIFT = 0.1  # of the shortest edge of a voxel, as tools round affines differently
MAX_SHEAR = 1e-3
FORMATS = (".nii.gz", ".nii", ".nrrd", ".png", ".tif")
PICTURES = (".png", ".jpg", ".jpeg", ".tif")  # may have colours


def label_error(image: str | os.PathLike, label: str | os.PathLike) -> str:
    """Explain why a file cannot be the label of an image.

    Args:
        image: file of the image.
        label: file of the label.

    Returns:
        A sentence, or an empty string.
    """
    if not str(label).lower().endswith(FORMATS) or _refers_to_file(Path(label)):
        return f"A label must be one file ({', '.join(FORMATS)}) that holds its values itself."
    try:
        mask = LoadImage(image_only=True)(label)
        values = np.asarray(mask).squeeze()
    except Exception:
        return "The label cannot be read as an image; expected a mask, such as the answer to an inference."
    if not np.isfinite(values).all() or (values % 1).any() or values.min() < 0 or values.max() > MAX_VALUE:
        return f"The values of a label must be whole numbers from 0 to {MAX_VALUE}; the file holds others."
    original = LoadImage(image_only=True)(image)
    expected = tuple(size for size in original.shape if size != 1)
    if Path(image).suffix.lower() in PICTURES:
        expected = expected[:2]
    if values.shape != expected:
        return (
            f"The label has {_size(values.shape)} voxels and its image {_size(expected)}; expected one value for each "
            "voxel of the image."
        )
    if original.ndim == 3 and mask.ndim == 3 and _has_other_place(original, mask):
        return "The label lies at another place than its image; expected the same origin, spacing and directions."
    return ""


def _refers_to_file(label: Path) -> bool:
    """Return whether a NRRD file takes its values from another file."""
    if not label.name.lower().endswith(".nrrd"):
        return False
    with label.open("rb") as file:
        header = file.read(MAX_HEADER).partition(b"\n\n")[0].replace(b" ", b"").lower()
    return b"datafile:" in header


def _has_other_place(image: MetaTensor, label: MetaTensor) -> bool:
    """Return whether the corners of a label are not those of its image, unless its axes are oblique to each other."""
    affine = np.asarray(image.affine, dtype=float)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > MAX_SHEAR:  # ITK, which writes labels, makes such axes orthogonal
        return False
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    corners[:, :3] *= np.array(image.shape[:3]) - 1
    distance = np.abs(corners @ (affine - np.asarray(label.affine, dtype=float)).T).max()
    return bool(distance > MAX_SHIFT * np.linalg.norm(affine[:3, :3], axis=0).min())


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
