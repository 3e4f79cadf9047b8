"""Files of a study."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import MediaStorageDirectoryStorage

from scripts.errors import InputError, printable
from scripts.inference.dicom_objects import valid_header

logger = logging.getLogger("anomaly_app")

Header = pydicom.Dataset
PATIENT = ("PatientID", "PatientName", "PatientBirthDate")
# Read at once, as pydicom reports a value that it cannot read only when it is used.
NEEDED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")
READ = (
    *(*NEEDED, *PATIENT, "StudyInstanceUID", "FrameOfReferenceUID", "NumberOfFrames"),
    *("Modality", "ImageType", "SeriesNumber", "SeriesDescription"),
)
PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")


@dataclass(frozen=True)
class Study:
    """Headers of a study.

    Attributes:
        folder: its folder.
        headers: headers of the DICOM objects that belong to a series, with the names of their files.
        unreadable: series UID by the path of each file that should be DICOM and cannot be read; empty if not known.
    """

    folder: Path
    headers: list[Header]
    unreadable: dict[Path, str]

    @classmethod
    def read(cls, folder: Path) -> Study:
        """Read the headers of all DICOM files below a folder; others than ``.dcm`` that are not DICOM are skipped.

        Args:
            folder: folder of a study, or of a part of it.

        Returns:
            The study.

        Raises:
            InputError: there are several studies or patients, or no file can be read.
        """
        headers: list[Header] = []
        unreadable: dict[Path, str] = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True)
                values = [header.get(keyword) for keyword in READ]
                if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                    continue
                if not all(values[: len(NEEDED)]):
                    raise ValueError("the header is not whole")
                headers.append(header)
            except Exception as error:  # a damaged header makes pydicom raise almost anything
                if not isinstance(error, InvalidDicomError) or path.suffix.lower() == ".dcm":
                    unreadable[path] = _series_of(path)
        if unreadable and not headers:
            raise InputError(
                f"the study has {len(unreadable)} DICOM files, all of them damaged or without the UIDs of image, "
                "series and kind; expected whole files, so send the study again."
            )
        n_studies = len({header.get("StudyInstanceUID") for header in headers})
        if n_studies > 1:
            raise InputError(f"the input holds {n_studies} studies; expected one, so give the folder of one.")
        _check_patient(headers)
        return cls(folder, headers, unreadable)

    def name_of(self, path: str | Path) -> str:
        """Return the path of a file in the study, printable and quoted."""
        return repr(printable(str(Path(path).relative_to(self.folder))))

    def check_unreadable(self, headers: Sequence[Header]) -> None:
        """Check that no unreadable file may belong to a series, and log those that are skipped.

        A file whose series is not known may belong to those in the same folder.

        Args:
            headers: headers of the series.

        Raises:
            InputError: one may.
        """
        folders = {Path(header.filename).parent for header in headers}
        for path, uid in self.unreadable.items():
            if uid == headers[0].SeriesInstanceUID or (not uid and path.parent in folders):
                raise InputError(
                    f"the file {self.name_of(path)} of the study is damaged or no DICOM, and may be a slice of the "
                    "series; expected whole files, so send the study again, or remove the file if it is none."
                )
            logger.warning(f"the file {self.name_of(path)} of the study is damaged or no DICOM: skipped")

    def without_copies(self, headers: Sequence[Header]) -> list[Header]:
        """Keep one of the files with the same image, and log the others.

        Args:
            headers: headers of a series.

        Returns:
            Headers with different SOPInstanceUIDs.

        Raises:
            InputError: different images have one SOPInstanceUID.
        """
        files: dict[str, list[Header]] = defaultdict(list)
        for header in headers:
            files[header.SOPInstanceUID].append(header)
        for first, *others in files.values():
            for other in others:
                names = f"{self.name_of(first.filename)} and {self.name_of(other.filename)}"
                if not self._is_same_image(first, other):
                    raise InputError(
                        f"the files {names} are different images with one SOPInstanceUID; expected one of them, so "
                        "remove the other."
                    )
                logger.warning(f"the files {names} hold the same image: the second is dropped")
        return [first for first, *_ in files.values()]

    def decode(self, header: Header) -> pydicom.Dataset:
        """Read a file and decode its pixels.

        Raises:
            InputError: they cannot be decoded.
        """
        data = pydicom.dcmread(header.filename)
        try:
            _ = data.pixel_array
        except Exception as error:  # a decoder raises almost anything
            encoding = data.file_meta.TransferSyntaxUID.name
            raise InputError(
                f"the file {self.name_of(header.filename)} cannot be decoded ({encoding}); "
                "expected whole files, uncompressed or in an encoding that docs/deploy.md lists, so decompress the "
                "series or send it again."
            ) from error
        return data

    def _is_same_image(self, first: Header, other: Header) -> bool:
        has_same_place = all(first.get(keyword) == other.get(keyword) for keyword in PLACE)
        return has_same_place and np.array_equal(self.decode(first).pixel_array, self.decode(other).pixel_array)


def whole_number(header: Header, keyword: str, default: int) -> int:
    """Return a number that is not negative; the default if it is missing or none."""
    text = str(header.get(keyword, ""))
    return int(text) if text.isdecimal() else default


def _check_patient(headers: Sequence[Header]) -> None:
    """Raise `InputError` unless all files are of one patient; a missing value differs from others."""
    identities = [_identity(valid_header(header)) for header in headers]
    differing = [name for name, *values in zip(PATIENT, *identities, strict=True) if len(set(values)) > 1]
    if differing:
        raise InputError(
            f"the files of the study differ in {', '.join(differing)}; expected those of one patient, so separate the "
            "patients or correct the headers."
        )


def _identity(header: Header) -> list[str]:
    """Return what identifies a patient, without differences in notation."""
    values = [str(header.get(keyword, "")).strip() for keyword in PATIENT]
    name = values[PATIENT.index("PatientName")].split("=")[0]
    values[PATIENT.index("PatientName")] = "^".join(part.strip() for part in name.split("^")).rstrip("^").casefold()
    return values


def _series_of(path: Path) -> str:
    """Return the series UID of a damaged file; empty if it cannot be read."""
    try:
        return str(pydicom.dcmread(path, force=True, specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID)
    except Exception:  # a damaged header makes pydicom raise almost anything
        return ""
