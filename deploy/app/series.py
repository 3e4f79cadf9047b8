"""Selection, check and decoding of one series of a study."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, EnhancedMRImageStorage, MRImageStorage

from scripts.data.dicom import validate_series
from scripts.errors import InputError, reason_of

logger = logging.getLogger("anomaly_app")

Header = pydicom.Dataset
TAKEN = (MRImageStorage, CTImageStorage)
EXPECTED = "expected one MR or CT series of one file per slice"


def read_headers(folder: Path) -> list[Header]:
    """Read the headers of all DICOM files below a folder; other files are skipped.

    Args:
        folder: folder of a study.

    Returns:
        Headers, with the names of their files.

    Raises:
        InputError: a file that should be DICOM cannot be read.
    """
    headers: list[Header] = []
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for number, path in enumerate(paths, 1):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            has_series = "SeriesInstanceUID" in header and header.SOPClassUID and header.SeriesInstanceUID
        except (InvalidDicomError, OSError, ValueError, AttributeError) as error:
            if isinstance(error, InvalidDicomError) and path.suffix.lower() != ".dcm":
                continue
            raise InputError(
                f"file {number} of the {len(paths)} of the input, in the order of their paths, is damaged or no DICOM; "
                "expected whole files, so send the study again."
            ) from error
        if has_series:
            headers.append(header)
    return headers


def choose_series(headers: Sequence[Header], pattern: str = "") -> list[Header]:
    """Choose the MR or CT series with the most slices, without localizers, and log the choice.

    Among series of equal length, the one with the lowest series number is chosen.

    Args:
        headers: headers of a study.
        pattern: regular expression to search in the SeriesDescription, ignoring case; empty for any.

    Returns:
        Headers of the series.

    Raises:
        InputError: no series qualifies, or there are several studies.
    """
    n_studies = len({header.get("StudyInstanceUID") for header in headers})
    if n_studies > 1:
        raise InputError(f"the input holds {n_studies} studies; expected one, so give the folder of one.")
    series: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        series[header.SeriesInstanceUID].append(header)
    images = {uid: slices for uid, slices in series.items() if slices[0].SOPClassUID in TAKEN}
    views = {uid: slices for uid, slices in images.items() if not any(map(is_localizer, slices))}
    candidates = [
        slices
        for slices in views.values()
        if re.search(pattern or "", str(slices[0].get("SeriesDescription", "")), re.IGNORECASE)
    ]
    if not candidates:
        kinds = Counter(slices[0].get("Modality", "no modality") for slices in series.values())
        enhanced = any(s[0].SOPClassUID in (EnhancedMRImageStorage, EnhancedCTImageStorage) for s in series.values())
        raise InputError(
            f"None of the {len(series)} series can be taken ({len(images)} are MR or CT, {len(views)} of them no "
            f"localizer, 0 of them described as {pattern!r}; modalities: {dict(kinds)}); {EXPECTED}"
            + (", so convert the enhanced multi-frame objects." if enhanced else ".")
        )
    choice = min(candidates, key=lambda s: (-len(s), _number(s[0]), s[0].SeriesInstanceUID))
    logger.info(
        f"series {choice[0].SeriesInstanceUID} with {len(choice)} slices is taken, "
        f"out of {len(candidates)} that could be and {len(series)} in the input"
    )
    return choice


def _number(header: Header) -> int:
    number = str(header.get("SeriesNumber", ""))
    return int(number) if number.isdigit() else 0


def is_localizer(header: Header) -> bool:
    """Return whether the ImageType of a slice is that of a localizer."""
    return "LOCALIZER" in str(header.get("ImageType", "")).upper()


def check_series(headers: Sequence[Header]) -> None:
    """Check that a series is one volume of grey values.

    Args:
        headers: headers of one series.

    Raises:
        InputError: slices lack a position, are in colour, missing, duplicate, or differ in size or orientation.
    """
    if len(headers) < 2:
        raise InputError("the series has a single slice, whose thickness nothing tells for certain; expected a volume.")
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID"):
        missing = sum(not header.get(keyword) for header in headers)
        if missing:
            raise InputError(f"{missing} slices of the series have no {keyword}; {EXPECTED}, with its place in space.")
    if len({header.FrameOfReferenceUID for header in headers}) > 1:
        raise InputError("the slices of the series have several frames of reference; expected one.")
    colours = {header.get("PhotometricInterpretation", "none") for header in headers}
    if not colours <= {"MONOCHROME1", "MONOCHROME2"}:
        raise InputError(f"the series has pixels of the kind {', '.join(sorted(colours))}; expected grey values.")
    wrong = validate_series(headers)
    if wrong:
        raise InputError(f"{wrong}.")


def read_volume(headers: Sequence[Header]) -> tuple[list[pydicom.Dataset], hd.Volume]:
    """Decode a series and apply rescale slope and intercept, as ITK does for the bundle.

    Args:
        headers: headers of one series, in any order.

    Returns:
        The slices in the order of the volume, and the volume ``[D,H,W]``, float32.

    Raises:
        InputError: pixels cannot be decoded, or the slices do not form one volume.
    """
    slices = [pydicom.dcmread(header.filename) for header in headers]
    syntax = slices[0].file_meta.TransferSyntaxUID.name
    for index, data in enumerate(slices, 1):
        try:
            _ = data.pixel_array
        except Exception as error:
            raise InputError(
                f"slice {index} of {len(slices)}, in the order of their paths, cannot be decoded "
                f"({syntax}: {reason_of(error, 200)}); "
                "expected whole files, uncompressed or in an encoding that docs/deploy.md lists, so decompress the "
                "series or send it again."
            ) from error
    try:
        volume = hd.get_volume_from_series(
            slices,
            dtype=np.float32,
            apply_real_world_transform=False,
            apply_presentation_lut=False,
            rtol=0.1,
            orientation_tol=1e-3,
        )
    except ValueError as error:
        raise InputError(f"the slices of the series do not make one volume ({error}); {EXPECTED}.") from error
    # along the slice normal, as in ITK, so that slices are numbered as in the bundle
    volume = volume.flip_spatial(0)
    origins = np.array([data.ImagePositionPatient for data in slices], dtype=float)
    places = volume.map_reference_to_indices(origins)[:, 0]
    return [slices[index] for index in np.argsort(places)], volume
