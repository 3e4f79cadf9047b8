"""MONAI Label's studies on a DICOMweb server, without patients in its records, and with whole series only.

The module is installed in the folder of the app and imports no module of the bundle.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from answers import EMPTY
from dicom_objects import Algorithm, segmentation
from fastapi import HTTPException
from label_files import label_error
from monai.transforms import LoadImage
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.convert import binary_to_image
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces.datastore import DefaultLabelTag
from series_frames import frames_of, slices_of

PATIENT = "PatientID"  # MONAI Label logs what it knows of an image
PARTIAL = ".partial-"


class DicomWebStudies(DICOMWebDatastore):
    """Studies on a DICOMweb server. A series is used only after all of it was fetched."""

    algorithm: Callable[[], Algorithm]  # describes the model in the DICOM SEG of a label; set by the app

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._fetching = threading.RLock()
        super().__init__(*args, **kwargs)

    def series_folder(self, image_id: str) -> Path:
        """Return the folder of the DICOM files of a series; it may be missing."""
        return Path(self._datastore.image_path()).resolve() / image_id

    def get_image_uri(self, image_id: str) -> str:
        """Fetch a series, unless it is there.

        Args:
            image_id: SeriesInstanceUID.

        Returns:
            Path of the series as NIfTI.
        """
        folder = self.series_folder(image_id)
        with self._fetching:
            if not (folder.is_dir() and any(folder.iterdir())):
                partial = folder.with_name(f"{PARTIAL}{image_id}")
                shutil.rmtree(partial, ignore_errors=True)
                try:
                    dicom_web_download_series(None, image_id, str(partial), self._client, self._fetch_by_frame)
                    os.replace(partial, folder)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
            made, kept = Path(super().get_image_uri(image_id)), folder.with_name(f"{image_id}.nii.gz")
            if kept.is_file() and made != kept:  # the first time, MONAI Label returns a temporary file
                made.unlink()
            return str(kept if kept.is_file() else made)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Save a label; one with the tag ``final`` is also stored on the DICOMweb server, as a DICOM SEG.

        Args:
            image_id: SeriesInstanceUID.
            label_filename: file to copy, an image or the bytes of OHIF.
            label_tag: tag of the label.
            label_info: further information to store.
            label_id: not used.

        Returns:
            Name of the label.

        Raises:
            HTTPException: the file is no label of the series, or is empty and would be stored as a DICOM SEG.
        """
        image = self.get_image_uri(image_id)
        if label_filename.endswith(".bin"):
            label_filename = binary_to_image(image, label_filename)
        if wrong := label_error(image, label_filename):
            raise HTTPException(422, wrong)
        if label_tag == DefaultLabelTag.FINAL:
            mask = LoadImage(image_only=True, ensure_channel_first=True)(label_filename)
            if not mask.any():
                raise HTTPException(422, EMPTY)
            slices = slices_of(image)
            dataset = segmentation(frames_of(mask, slices), slices, self.algorithm(), is_edited=True)
            self._client.store_instances([dataset])
            label_info = {**label_info, "SeriesInstanceUID": str(dataset.SeriesInstanceUID)}
        return LocalDatastore.save_label(self, image_id, label_filename, label_tag, label_info)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return what is known of an image, without its patient."""
        return {key: value for key, value in super().get_image_info(image_id).items() if key != PATIENT}

    def _dicom_info(self, series_id: str) -> dict[str, Any]:
        return {key: value for key, value in super()._dicom_info(series_id).items() if key != PATIENT}
