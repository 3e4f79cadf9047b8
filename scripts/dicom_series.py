"""DICOM files that should make one volume.

The server of MONAI Label asks this too, apart from the bundle: no relative imports here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

TAGS = ("SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns")


def header_of(path: Path) -> pydicom.Dataset | None:
    """What `what_is_wrong` looks at of a file; None where it is not DICOM with a series."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
    except (InvalidDicomError, OSError, ValueError):
        return None
    return header if "SeriesInstanceUID" in header else None


def what_is_wrong(headers: Sequence[pydicom.Dataset]) -> str:
    """Why DICOM files do not make one volume, or an empty string."""
    n_series = len({header.SeriesInstanceUID for header in headers})
    if n_series > 1:
        return f"the folder holds {n_series} DICOM series; expected one in each folder"
    if not all(header.get("ImagePositionPatient") and header.get("ImageOrientationPatient") for header in headers):
        return ""
    if len({(header.get("Rows"), header.get("Columns")) for header in headers}) > 1:
        return "the slices of the series differ in size; expected one size"
    orientations = np.array([header.ImageOrientationPatient for header in headers], dtype=float)
    if np.ptp(orientations, axis=0).max() > 1e-3:
        return "the slices of the series differ in orientation, as a localizer's do; expected parallel slices"
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    gaps = np.diff(np.sort([np.dot(normal, np.array(header.ImagePositionPatient, float)) for header in headers]))
    if len(gaps) and gaps.min() < 1e-3:
        return "several slices of the series lie at one position; expected one volume, so split the series"
    if len(gaps) and np.ptp(gaps) > 0.1 * np.median(gaps):
        return (
            f"the slices of the series lie {gaps.min():.3g} to {gaps.max():.3g} mm apart; expected even gaps, so look "
            "for missing files"
        )
    return ""
