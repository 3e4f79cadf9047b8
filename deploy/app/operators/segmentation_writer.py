"""Writer of the mask: a DICOM Segmentation."""

from __future__ import annotations

from pathlib import Path

from bundle import Algorithm
from monai.deploy.core import Fragment
from monai.deploy.operators.dicom_seg_writer_operator import DICOMSegmentationWriterOperator, SegmentDescription
from monai.deploy.operators.dicom_utils import ModelInfo
from pydicom.sr.codedict import codes


def segmentation_writer(fragment: Fragment, algorithm: Algorithm, folder: Path) -> DICOMSegmentationWriterOperator:
    """Make the SDK's writer for the mask.

    Args:
        fragment: the app.
        algorithm: description of the bundle.
        folder: output folder.

    Returns:
        Operator with the inputs ``study_selected_series_list`` and ``seg_image``.
    """
    anomaly = SegmentDescription(
        segment_label="Anomaly",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_name=algorithm.name,
        algorithm_version=algorithm.version,
        algorithm_family=codes.DCM.ArtificialIntelligence,
    )
    return DICOMSegmentationWriterOperator(
        fragment,
        segment_descriptions=[anomaly],
        model_info=ModelInfo(algorithm.manufacturer, algorithm.name, algorithm.version, algorithm.device_uid),
        custom_tags={"SeriesDescription": "Anomaly mask, not for diagnosis", "ContentLabel": "ANOMALY"},
        output_folder=folder,
        name="segmentation",
    )
