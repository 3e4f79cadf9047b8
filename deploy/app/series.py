"""Check and decoding of one series as a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from study import Header, Study, whole_number

from scripts.data.dicom import HeaderError, frame_headers, validate_series
from scripts.errors import InputError

EXPECTED = "expected one volume, a slice in each file or all of them in one"
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID")


def check_series(headers: Sequence[Header]) -> None:
    """Check that a series is one volume of grey values.

    Args:
        headers: headers of one series.

    Raises:
        InputError: slices lack a position, are in colour, missing, duplicate, or differ in size or orientation.
    """
    is_multi_frame = any(whole_number(header, "NumberOfFrames", 1) > 1 for header in headers)
    if is_multi_frame and len(headers) > 1:
        raise InputError(f"the series has {len(headers)} files, one or more of them of several slices; {EXPECTED}.")
    slices = _frames(headers[0]) if is_multi_frame else list(headers)
    if len(slices) < 2:
        raise InputError("the series has a single slice, whose thickness nothing tells for certain; expected a volume.")
    for keyword in GEOMETRY:
        missing = sum(not data.get(keyword) for data in slices)
        if missing:
            raise InputError(f"{missing} slices of the series have no {keyword}; {EXPECTED}, with its place in space.")
    if len({data.FrameOfReferenceUID for data in slices}) > 1:
        raise InputError("the slices of the series have several frames of reference; expected one.")
    colours = {str(header.get("PhotometricInterpretation", "none")) for header in headers}
    if not colours <= {"MONOCHROME1", "MONOCHROME2"}:
        raise InputError(f"the series has pixels of the kind {', '.join(sorted(colours))}; expected grey values.")
    wrong = validate_series(slices)
    if wrong:
        raise InputError(f"{wrong}.")


def read_volume(study: Study, headers: Sequence[Header]) -> tuple[list[pydicom.Dataset], hd.Volume]:
    """Decode a series and apply rescale slope and intercept, as ITK does for the bundle.

    Args:
        study: the study.
        headers: headers of one series, in any order.

    Returns:
        The slices in the order of the volume, or one multi-frame image, and the volume ``[D,H,W]``, float32.

    Raises:
        InputError: pixels cannot be decoded, or the slices do not form one volume.
    """
    slices = [study.decode(header) for header in headers]
    options: dict[str, Any] = {
        "dtype": np.float32,
        "apply_real_world_transform": False,
        "apply_presentation_lut": False,
        "rtol": 0.1,
    }
    try:
        if len(slices) > 1:
            volume = hd.get_volume_from_series(slices, orientation_tol=1e-3, **options)
        else:
            volume = hd.Image.from_dataset(slices[0]).get_volume(**options)
    except Exception as error:  # highdicom raises almost anything for an incomplete multi-frame image
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        raise InputError(f"the slices of the series do not make one volume{reason}; {EXPECTED}.") from error
    # along the slice normal, as in ITK, so that slices are numbered as in the bundle
    volume = volume.flip_spatial(0)
    if len(slices) == 1:
        return slices, volume
    origins = np.array([data.ImagePositionPatient for data in slices], dtype=float)
    places = volume.map_reference_to_indices(origins)[:, 0]
    return [slices[index] for index in np.argsort(places)], volume


def _frames(header: Header) -> list[pydicom.Dataset]:
    """Make a header of each frame of a multi-frame image.

    Raises:
        InputError: frames have no position.
    """
    try:
        frames = frame_headers(header)
    except HeaderError as error:
        raise InputError(f"{error}.") from error
    if len(frames) != whole_number(header, "NumberOfFrames", 1):
        raise InputError(f"not every frame of the image has a position; {EXPECTED}, with its place in space.")
    for frame in frames:
        for keyword in ("SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(frame, keyword, header.get(keyword))
    return frames
