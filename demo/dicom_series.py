"""Writer of a volume as the DICOM series of an invented patient."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds


def write_series(folder: Path, image: np.ndarray, affine: np.ndarray, **attributes: Any) -> list[FileDataset]:
    """Write an MR series, one file per slice along the last axis.

    Args:
        folder: folder for ``000.dcm`` and so on.
        image: ``[X,Y,Z]``, integers from 0 to 65535; X runs along the rows of the slices, Y down them.
        affine: affine in RAS, mm; its first two axes must be orthogonal.
        attributes: values by keyword, which replace the defaults.

    Returns:
        The slices.

    Raises:
        ValueError: intensities are out of range.
    """
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    common: dict[str, Any] = {
        "SOPClassUID": MRImageStorage,
        "PatientName": "Sample^Synthetic",
        "PatientID": "SAMPLE-1",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "PositionReferenceIndicator": "",
        "StudyDate": "20260101",
        "StudyTime": "120000",
        "StudyID": "1",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "SeriesNumber": 1,
        "SeriesDescription": "synthetic T1",
        "Modality": "MR",
        "BodyPartExamined": "BRAIN",
        "PatientPosition": "HFS",
        "Manufacturer": "made up",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ScanningSequence": "GR",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "3D",
        "EchoTime": 3,
        "RepetitionTime": 8,
        "EchoTrainLength": 1,
        "Columns": image.shape[0],
        "Rows": image.shape[1],
        "PixelSpacing": _decimals(spacing[1::-1]),
        "SliceThickness": _decimals(spacing[2:])[0],
        "ImageOrientationPatient": _decimals(directions[:, :2].T.ravel()),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        **attributes,
    }
    if image.min() < 0 or image.max() > 65535:
        raise ValueError(f"Intensities must lie between 0 and 65535; got {image.min():g} to {image.max():g}.")
    folder.mkdir(parents=True, exist_ok=True)
    slices = []
    for index in range(image.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = common["SOPClassUID"]
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{index:03d}.dcm"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        data.InstanceNumber = index + 1
        data.ImagePositionPatient = _decimals((lps @ [0, 0, index, 1])[:3])
        data.PixelData = np.ascontiguousarray(image[:, :, index].T, dtype="<u2").tobytes()
        for keyword, value in common.items():
            setattr(data, keyword, value)
        data.save_as(path, enforce_file_format=True)
        slices.append(data)
    return slices


def _decimals(values: np.ndarray) -> list[str]:
    return [format_number_as_ds(float(value)) for value in values]


def main() -> None:
    """Run ``python -m demo.dicom_series VOLUME FOLDER``, which writes a NIfTI volume as a series."""
    parser = argparse.ArgumentParser(prog="python -m demo.dicom_series", description=__doc__)
    parser.add_argument("volume", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    volume = nib.nifti1.load(options.volume)
    for older in options.folder.glob("*.dcm"):
        older.unlink()
    write_series(options.folder, np.asarray(volume.dataobj), volume.affine)


if __name__ == "__main__":
    main()
