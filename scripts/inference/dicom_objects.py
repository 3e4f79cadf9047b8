"""DICOM objects of a result: segmentation, parametric map and structured report.

MONAI Label uses a copy of this module without the bundle and with an older highdicom: no imports of the bundle here,
and only what highdicom has in both 0.22 and 0.28. Importing it silences warnings of pydicom and highdicom, which quote
invalid values of headers, including names and birth dates.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from highdicom.sr import CodedConcept, Measurement
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.valuerep import DA, TM

SCHEME = "99DPMM"  # private codes for concepts that public terminologies lack
ANOMALY_SCORE = Code("anomaly-score", SCHEME, "Anomaly score in units of the decision threshold")
BEYOND_LIMIT = Code("beyond-limit", SCHEME, "Share of the foreground beyond the decision threshold")
CASE_P_VALUE = Code("p-value", SCHEME, "Conformal p-value of the case among normal cases")
FLAGGED = Code("flagged", SCHEME, "More conspicuous than normal cases")
N_REGIONS = Code("regions", SCHEME, "Number of connected anomalous regions")
OUTSIDE_FITTED_RANGE = Code("outside-range", SCHEME, "Input outside the range of the normal images")
MILLILITRE = Code("mL", "UCUM", "milliliter")
ALGORITHM_FAMILY = Code("111000", "DCM", "Algorithm Family")
ALGORITHM_MANUFACTURER = Code("122405", "DCM", "Algorithm Manufacturer")
COMMENT = Code("121106", "DCM", "Comment")
PROCESSING_ALGORITHM = Code("Newcode1", "99IHE", "Processing Algorithm")  # of the IHE profile AI Results

OUTSIDE_COMMENT = "Outside the fitted range: do not rely on the mask."
# Series numbers of the results of series n: 100 n + these, so that the results of two series differ.
SEGMENTATION_NUMBER, MAP_NUMBER, REPORT_NUMBER = 91, 92, 93
PIXEL_DATA_GROUP = 0x7FE00000
# Attributes of patient and study that the results copy. They may be empty but must be present; anonymisers tend to
# remove them or to fill them with invalid values.
COPIED_ATTRIBUTES = {
    "PatientName": str,
    "PatientID": str,
    "PatientBirthDate": DA,
    "PatientSex": hd.PatientSexValues,
    "StudyDate": DA,
    "StudyTime": TM,
    "StudyID": str,
    "AccessionNumber": str,
    "ReferringPhysicianName": str,
    "PositionReferenceIndicator": str,
}

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", message="The string .* is unlikely to represent", category=UserWarning)
logging.getLogger("highdicom").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Algorithm:
    """Description of the bundle in every object.

    Attributes:
        manufacturer: authors of the bundle.
        name: name of the bundle.
        version: version of the bundle.
        device_uid: unique for every fit, as the IHE profile for AI results requires.
    """

    manufacturer: str
    name: str
    version: str
    device_uid: str


def segmentation(
    mask: np.ndarray, slices: Sequence[Dataset], algorithm: Algorithm, is_edited: bool = False
) -> hd.seg.Segmentation:
    """Make the DICOM Segmentation of a mask, without empty frames.

    An empty mask gives an object of empty frames, because an object without frames is not valid.

    Args:
        mask: ``[D,H,W]``, nonzero in anomalous regions.
        slices: the D source images in order, or one image of D frames; see `in_frame_order`.
        algorithm: description of the bundle.
        is_edited: whether a person accepted or changed the mask.

    Returns:
        The object, with one segment.
    """
    sources = [valid_header(data) for data in slices]
    pixels = in_frame_order(mask != 0, sources).astype(np.uint8)
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Anomaly",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type="SEMIAUTOMATIC" if is_edited else "AUTOMATIC",
        algorithm_identification=_identification(algorithm),
    )
    dataset = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        omit_empty_frames=bool(pixels.any()),
        content_label="ANOMALY",
        series_description="Anomaly mask, not for diagnosis",
        **_equipment(algorithm),
        **_instance(sources, SEGMENTATION_NUMBER),
    )
    return _completed(dataset, sources, algorithm)


def parametric_map(scores: np.ndarray, slices: Sequence[Dataset], algorithm: Algorithm) -> hd.pm.ParametricMap:
    """Make the DICOM Parametric Map of an anomaly map, 32-bit floating point.

    Args:
        scores: calibrated map ``[D,H,W]``: 0 a typical normal patch, 1 the decision threshold.
        slices: the D source images in order, or one image of D frames; see `in_frame_order`.
        algorithm: description of the bundle.

    Returns:
        The object.
    """
    sources = [valid_header(data) for data in slices]
    meaning = hd.pm.RealWorldValueMapping(
        lut_label="ANOMALY_SCORE",
        lut_explanation="0: typical normal patch, 1: decision threshold",
        unit=codes.UCUM.NoUnits,
        value_range=(float(scores.min()), float(scores.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=ANOMALY_SCORE,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # newer versions have another name for the window
        dataset = hd.pm.ParametricMap(
            sources,
            in_frame_order(scores.astype(np.float32), sources),
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[meaning],
            window_center=1.0,
            window_width=2.0,
            content_label="ANOMALY_MAP",
            content_description="Anomaly score in units of the decision threshold",
            series_description="Anomaly map, not for diagnosis",
            **_equipment(algorithm),
            **_instance(sources, MAP_NUMBER),
        )
    dataset.Laterality = sources[0].get("Laterality", "")  # required for paired body parts
    return _completed(dataset, sources, algorithm)


def structured_report(
    measurements: Mapping[str, Any], slices: Sequence[Dataset], algorithm: Algorithm
) -> hd.sr.Comprehensive3DSR:
    """Make the measurement report (TID 1500) of a series; its first line warns of a case outside the fitted range.

    Args:
        measurements: see `scripts.inference.measurements.measurements`.
        slices: the measured images.
        algorithm: description of the bundle.

    Returns:
        The object.
    """
    sources = [valid_header(data) for data in slices]
    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=algorithm.device_uid, manufacturer_name=algorithm.manufacturer, model_name=algorithm.name
        ),
    )
    p_value = measurements.get("p_value")
    is_outside = measurements["outside_fitted_range"]
    decisions = [(OUTSIDE_FITTED_RANGE, is_outside)]
    if measurements.get("flagged") is not None:
        decisions.append((FLAGGED, measurements["flagged"]))
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier="Anomaly"),
        finding_category=codes.SCT.MorphologicallyAbnormalStructure,
        finding_type=codes.SCT.Lesion,
        algorithm_id=_report_identification(algorithm),
        measurements=[
            Measurement(ANOMALY_SCORE, measurements["image_score"], codes.UCUM.NoUnits),
            Measurement(codes.SCT.Volume, measurements["anomalous_volume_ml"], MILLILITRE),
            Measurement(BEYOND_LIMIT, 100 * measurements["fraction_beyond_limit"], codes.UCUM.Percent),
            Measurement(N_REGIONS, measurements["n_regions"], codes.UCUM.NoUnits),
            *([] if p_value is None else [Measurement(CASE_P_VALUE, p_value, codes.UCUM.NoUnits)]),
        ],
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(name, codes.SCT.Yes if value else codes.SCT.No) for name, value in decisions
        ],
        source_images=[hd.sr.SourceImageForMeasurementGroup(data.SOPClassUID, data.SOPInstanceUID) for data in sources],
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    if is_outside:  # TID 1500 can be extended
        content[0].ContentSequence.insert(0, _comment(OUTSIDE_COMMENT))
    report = hd.sr.Comprehensive3DSR(
        evidence=sources,
        content=content,
        manufacturer=algorithm.manufacturer,
        series_description="Anomaly measurements, not for diagnosis",
        **_instance(sources, REPORT_NUMBER),
    )
    return _completed(report, sources, algorithm)


def valid_header(data: Dataset) -> Dataset:
    """Copy the header of a source image; attributes that the results copy are empty if missing or invalid."""
    header = data[:PIXEL_DATA_GROUP]
    header.file_meta = data.file_meta
    for keyword, kind in COPIED_ATTRIBUTES.items():
        try:
            kind(data.get(keyword, ""))
        except ValueError:
            header.pop(keyword)  # the element itself is that of the source
        header.setdefault(keyword, "")
    return header


def frame_order(header: Dataset) -> np.ndarray:
    """Return the indices ``[D]`` of the frames of a multi-frame image, ordered along the slice normal."""
    shared = header.SharedFunctionalGroupsSequence[0]
    frames = header.PerFrameFunctionalGroupsSequence

    def numbers(sequence: str, keyword: str) -> np.ndarray:
        groups = [frame if sequence in frame else shared for frame in frames]
        return np.array([group[sequence][0][keyword].value for group in groups], dtype=float)

    directions = numbers("PlaneOrientationSequence", "ImageOrientationPatient")[0]
    positions = numbers("PlanePositionSequence", "ImagePositionPatient")
    return np.argsort(positions @ np.cross(directions[:3], directions[3:]), kind="stable")


def in_frame_order(volume: np.ndarray, sources: Sequence[Dataset]) -> np.ndarray:
    """Put the slices of a volume in the order of its source images.

    Args:
        volume: ``[D,H,W]``: slice i is of source image i; for one multi-frame image, slices follow the slice normal.
        sources: the source images.

    Returns:
        The same shape; slice i is of source image or frame i.
    """
    if len(sources) > 1 or "PerFrameFunctionalGroupsSequence" not in sources[0]:
        return volume
    return volume[np.argsort(frame_order(sources[0]))]


def _identification(algorithm: Algorithm) -> hd.AlgorithmIdentificationSequence:
    return hd.AlgorithmIdentificationSequence(
        name=algorithm.name, version=algorithm.version, family=codes.DCM.ArtificialIntelligence
    )


def _report_identification(algorithm: Algorithm) -> hd.sr.AlgorithmIdentification:
    modifier = hd.sr.RelationshipTypeValues.HAS_CONCEPT_MOD
    identification = hd.sr.AlgorithmIdentification(name=algorithm.name, version=algorithm.version)
    identification.append(hd.sr.TextContentItem(ALGORITHM_MANUFACTURER, algorithm.manufacturer, modifier))
    identification.append(hd.sr.CodeContentItem(ALGORITHM_FAMILY, codes.DCM.ArtificialIntelligence, modifier))
    return identification


def _equipment(algorithm: Algorithm) -> dict[str, Any]:
    return {
        "manufacturer": algorithm.manufacturer,
        "manufacturer_model_name": algorithm.name,
        "software_versions": algorithm.version,
        "device_serial_number": algorithm.device_uid,
    }


def _instance(sources: Sequence[Dataset], number: int) -> dict[str, Any]:
    """Return the arguments of a new object alone in its series."""
    try:
        source_number = max(int(sources[0].get("SeriesNumber") or 0), 0)
    except (TypeError, ValueError):
        source_number = 0
    return {
        "series_instance_uid": hd.UID(),
        "series_number": source_number % 10**7 * 100 + number,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
    }


def _completed(dataset: Any, sources: Sequence[Dataset], algorithm: Algorithm) -> Any:
    """Add dates, the institution of the source, and the algorithm as equipment."""
    now = datetime.now()
    dataset.SeriesDate = dataset.ContentDate = DA(now.date())
    dataset.SeriesTime = dataset.ContentTime = TM(now.time())
    if institution := str(sources[0].get("InstitutionName", "")):
        dataset.InstitutionName = institution[:64]
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(PROCESSING_ALGORITHM)]
    equipment.Manufacturer = algorithm.manufacturer
    equipment.ManufacturerModelName = algorithm.name
    equipment.SoftwareVersions = algorithm.version
    equipment.DeviceUID = algorithm.device_uid
    dataset.ContributingEquipmentSequence = [equipment, *dataset.get("ContributingEquipmentSequence", [])]
    return dataset


def _comment(text: str) -> hd.sr.TextContentItem:
    return hd.sr.TextContentItem(COMMENT, text, hd.sr.RelationshipTypeValues.CONTAINS)
