"""Validation of DICOM files that should make one volume.

The server of MONAI Label uses a copy of this module without the bundle: no relative imports here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, MediaStorageDirectoryStorage

TAGS = (
    "SOPClassUID",
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "NumberOfFrames",
    "RescaleSlope",
    "RescaleIntercept",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
FRAME_GROUPS = {  # sequences of a multi-frame file that hold the attributes of each frame
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
PIXEL_DATA = 0x7FE00010
ENCAPSULATED = 0xFFFFFFFF  # length of compressed pixel data


class HeaderError(ValueError):
    """Error of a DICOM file that cannot be used; its message gives the reason."""


def read_header(path: Path) -> pydicom.Dataset | None:
    """Read the attributes that `validate_series` checks.

    Args:
        path: a file of any kind.

    Returns:
        The attributes, or None if the file is not DICOM, or is a DICOMDIR.

    Raises:
        HeaderError: the DICOM file is damaged or incomplete, or a file cannot be opened.
    """
    lengths: list[tuple[int, int]] = []  # bytes of the pixel data, and of its element header

    def is_pixel_data(tag: Any, vr: str | None, length: int) -> bool:
        if tag == PIXEL_DATA:
            lengths.append((length, 8 if vr is None else 12))
        return tag >= PIXEL_DATA

    try:
        with path.open("rb") as file:
            header = read_partial(file, is_pixel_data, specific_tags=[Tag(name) for name in TAGS])
            n_left = path.stat().st_size - file.tell()
        is_directory = (
            path.name.upper() == "DICOMDIR"
            or header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage
        )
        is_big_endian = header.file_meta.get("TransferSyntaxUID") == ExplicitVRBigEndian
        is_deflated = header.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    except InvalidDicomError:
        return None
    except OSError as error:
        raise HeaderError(
            f"the file {_name(path)} cannot be opened ({error.strerror}); check its permissions"
        ) from error
    except Exception as error:  # a damaged header makes pydicom raise almost anything
        raise HeaderError(_damaged(path)) from error
    if is_directory:
        return None
    if not _value(header, "SeriesInstanceUID"):
        raise HeaderError(_damaged(path))
    if is_big_endian and _value(header, "BitsAllocated") == 32:  # GDCM swaps their halves
        raise HeaderError(
            f"the DICOM file {_name(path)} holds big-endian numbers of 32 bits; convert it to little-endian"
        )
    if lengths:
        length, n_before = lengths[0]
        is_cut_off = not is_deflated and n_left - n_before < length
        if length != ENCAPSULATED and (length < _native_length(header) or is_cut_off):
            raise HeaderError(
                f"the DICOM file {_name(path)} holds less pixel data than its header says; look for the whole file"
            )
    return header


def validate_series(headers: Sequence[pydicom.Dataset]) -> str:
    """Explain why DICOM files do not make one volume.

    Args:
        headers: headers of the files of a series, as `read_header` returns them or complete.

    Returns:
        A sentence, or an empty string if the series is valid.
    """
    try:
        return _series_error(headers)
    except HeaderError as error:
        return str(error)


def frame_headers(header: pydicom.Dataset) -> list[pydicom.Dataset]:
    """Make a header of each frame of a multi-frame file, of its geometry and scale; none if a position is missing.

    Raises:
        HeaderError: a value cannot be read.
    """
    shared = _value(header, "SharedFunctionalGroupsSequence") or []
    frames = []
    for groups in _value(header, "PerFrameFunctionalGroupsSequence") or []:
        frame = pydicom.Dataset()
        for keyword, group in FRAME_GROUPS.items():
            for item in [item for source in (groups, *shared) for item in _value(source, group) or []]:
                if (value := _value(item, keyword)) is not None:
                    setattr(frame, keyword, value)
                    break
        frames.append(frame)
    return frames if all("ImagePositionPatient" in frame for frame in frames) else []


def _series_error(headers: Sequence[pydicom.Dataset]) -> str:
    n_series = len({str(_value(header, "SeriesInstanceUID")) for header in headers})
    if n_series > 1:
        return f"the folder holds {n_series} DICOM series; expected one in each folder"
    frames = frame_headers(headers[0]) if len(headers) == 1 else []
    if error := _series_error(frames) or _order_error(frames) if len(frames) > 1 else "":
        return error
    if any(_value(header, "PhotometricInterpretation") == "PALETTE COLOR" for header in headers):
        return "the DICOM files hold palette colours; expected grey values or RGB, so convert them"
    for header in headers:
        slope = _numbers(header, "RescaleSlope", 1)
        if slope is not None and not slope[0]:
            return "RescaleSlope in a DICOM header is 0; expected another number, so correct it"
        spacing = _numbers(header, "PixelSpacing", 2)
        if spacing is not None and not (spacing > 0).all():
            return "PixelSpacing in a DICOM header is not positive; expected two lengths in mm, so correct it"
    if not all(_value(header, "ImagePositionPatient") for header in headers) or not all(
        _value(header, "ImageOrientationPatient") for header in headers
    ):
        if len(headers) > 1:
            return (
                "slices of the series lack ImagePositionPatient or ImageOrientationPatient; expected both in each "
                "header, so export the series anew"
            )
        return ""
    if len({tuple(str(_value(header, name)) for name in ("Rows", "Columns")) for header in headers}) > 1:
        return "the slices of the series differ in size; expected one size"
    if len(headers) > 1 and any(_value(header, "SamplesPerPixel") == 3 for header in headers):
        return "the slices of the series are in colour; expected grey values"
    if len(headers) > 1 and any((_numbers(header, "NumberOfFrames", 1) or 1) > 1 for header in headers):
        return "the folder holds several files of many slices each; expected one of them, or one slice in each file"
    if not all(_value(header, "PixelSpacing") for header in headers):
        return "a DICOM header lacks PixelSpacing; expected two lengths in mm, so export the series anew"
    if np.ptp(_all_numbers(headers, "PixelSpacing", 2), axis=0).max() > 1e-3:
        return "the slices of the series differ in PixelSpacing; expected one"
    orientations = _all_numbers(headers, "ImageOrientationPatient", 6)
    if np.ptp(orientations, axis=0).max() > 1e-3:
        return "the slices of the series differ in orientation, as a localizer's do; expected parallel slices"
    row, column = orientations[0, :3], orientations[0, 3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not np.allclose(lengths, 1, atol=0.1) or abs(row @ column) > 1e-3 * lengths[0] * lengths[1]:
        return "ImageOrientationPatient in a DICOM header does not hold two directions at right angles; correct it"
    normal = np.cross(row, column)
    gaps = np.diff(np.sort(_all_numbers(headers, "ImagePositionPatient", 3) @ normal))
    if len(gaps) and gaps.min() < 1e-3:
        return "several slices of the series lie at one position; expected one volume, so split the series"
    if len(gaps) and np.ptp(gaps) > 0.1 * np.median(gaps):
        return (
            f"the slices of the series lie {gaps.min():.3g} to {gaps.max():.3g} mm apart; expected even gaps, so look "
            "for missing files"
        )
    return ""


def _order_error(frames: Sequence[pydicom.Dataset]) -> str:
    """Explain why frames that make one volume cannot be read in the order of the file."""
    scales = [tuple(str(_value(frame, name)) for name in ("RescaleSlope", "RescaleIntercept")) for frame in frames]
    if len(set(scales)) > 1:
        return "the slices of the DICOM file differ in RescaleSlope or RescaleIntercept; expected one, so convert it"
    positions = _all_numbers(frames, "ImagePositionPatient", 3)
    steps = (positions[1:] - positions[:-1]) @ (positions[-1] - positions[0])
    if steps.min() <= 0:
        return "the slices of the DICOM file are not stored in order of their positions; expected that, so convert it"
    return ""


def _value(header: pydicom.Dataset, keyword: str) -> Any:
    """Read a value; None if it is missing. pydicom parses it only here, and raises almost anything."""
    try:
        return header.get(keyword)
    except Exception as error:
        raise HeaderError(f"{keyword} in a DICOM header cannot be read; look for the undamaged files") from error


def _numbers(header: pydicom.Dataset, keyword: str, n_expected: int) -> np.ndarray | None:
    """Read finite numbers ``[n_expected]``; None if they are missing."""
    value = _value(header, keyword)
    if value is None or value == "":
        return None
    try:
        numbers = np.atleast_1d(np.array(value, dtype=float))
    except (TypeError, ValueError, OverflowError):
        numbers = np.array([np.nan])
    if numbers.shape != (n_expected,) or not np.isfinite(numbers).all():
        expected = "a number" if n_expected == 1 else f"{n_expected} numbers"
        raise HeaderError(f"{keyword} in a DICOM header is not {expected}; look for the undamaged files")
    return numbers


def _all_numbers(headers: Sequence[pydicom.Dataset], keyword: str, n_expected: int) -> np.ndarray:
    """Read numbers ``[len(headers), n_expected]`` that every header has."""
    return np.stack([np.asarray(_numbers(header, keyword, n_expected), dtype=float) for header in headers])


def _native_length(header: pydicom.Dataset) -> int:
    """Compute the minimal number of bytes of uncompressed pixel data."""
    if str(_value(header, "PhotometricInterpretation")).startswith(("YBR_FULL_422", "YBR_PARTIAL_42")):
        return 0
    factors = [
        _numbers(header, keyword, 1)
        for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames")
    ]
    return math.prod(max(int(factor[0]), 1) for factor in factors if factor is not None) // 8


def _damaged(path: Path) -> str:
    return f"the header of the DICOM file {_name(path)} is damaged or not whole; look for the undamaged file"


def _name(path: Path) -> str:
    """Quote the name of a file for a message, without control characters."""
    return repr("".join(character if character.isprintable() else "_" for character in path.name))
