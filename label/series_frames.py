"""DICOM series that images were converted from, and volumes as their frames.

The module is installed in the folder of the app and imports no module of the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from fastapi import HTTPException
from monai.data import MetaTensor
from pydicom.filebase import DicomBytesIO

MAX_SHIFT = 0.1  # of a voxel


def encoded(dataset: pydicom.Dataset) -> bytes:
    """Return the content of the file of a DICOM object."""
    buffer = DicomBytesIO()
    dataset.save_as(buffer, write_like_original=False)
    return buffer.getvalue()


def slices_of(image: str) -> list[pydicom.Dataset]:
    """Read the DICOM series that an image was converted from, its slices ordered along their normal.

    Args:
        image: file of the image, next to the folder of its series.

    Returns:
        Headers of the slices.

    Raises:
        HTTPException: the series has a single slice, or files of many.
    """
    folder = Path(image.removesuffix(".nii.gz"))
    slices = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.glob("*.dcm"))]
    if len(slices) < 2 or not all("ImageOrientationPatient" in data for data in slices):
        raise HTTPException(422, "DICOM objects are made of series with one slice per file; give output=image.")
    return sorted(slices, key=lambda data: float(np.dot(_normal(data), data.ImagePositionPatient)))


def frames_of(image: MetaTensor, slices: Sequence[pydicom.Dataset]) -> np.ndarray:
    """Turn a volume into the frames of its series.

    Args:
        image: ``[1,...]`` with the affine of its file, in RAS.
        slices: the D slices, see `slices_of`.

    Returns:
        ``[D,H,W]``.

    Raises:
        HTTPException: the volume does not consist of these slices.
    """
    affine = np.asarray(image.meta["original_affine"], dtype=float)
    row, column = np.reshape(np.array(slices[0].ImageOrientationPatient, dtype=float), (2, 3))
    between_rows, between_columns = (float(length) for length in slices[0].PixelSpacing)
    first, last = (np.array(slices[index].ImagePositionPatient, dtype=float) for index in (0, -1))
    frames = np.eye(4)  # of [column, row, slice] in LPS
    frames[:3] = np.stack(
        [row * between_columns, column * between_rows, (last - first) / max(len(slices) - 1, 1), first], axis=1
    )
    steps = np.linalg.inv(affine) @ np.diag([-1.0, -1.0, 1.0, 1.0]) @ frames
    orientation = nib.orientations.io_orientation(np.linalg.inv(steps))
    volume = nib.orientations.apply_orientation(image.cpu().numpy()[0], orientation)
    expected = (slices[0].Columns, slices[0].Rows, len(slices))
    is_aligned = np.abs(steps[:3, :3] - steps[:3, :3].round()).max() < MAX_SHIFT
    corner = np.where(steps[:3, :3].round().sum(axis=1) < 0, np.array(image.shape[1:]) - 1, 0)
    if volume.shape != expected or not is_aligned or np.abs(steps[:3, 3] - corner).max() > MAX_SHIFT:
        raise HTTPException(422, "The voxels of the image do not lie on the slices of its series.")
    return volume.transpose(2, 1, 0)


def _normal(data: pydicom.Dataset) -> np.ndarray:
    directions = np.array(data.ImageOrientationPatient, dtype=float)
    return np.cross(directions[:3], directions[3:])
