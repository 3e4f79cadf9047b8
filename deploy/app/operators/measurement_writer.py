"""Writer of the measurements: a DICOM structured report and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import highdicom as hd
from anomaly_codes import (
    ANOMALY_SCORE,
    BEYOND_LIMIT,
    CASE_P_VALUE,
    FLAGGED,
    MILLILITRE,
    N_REGIONS,
    OUTSIDE_FITTED_RANGE,
)
from bundle import Algorithm
from highdicom.sr import Measurement
from pydicom import Dataset
from pydicom.sr.codedict import codes

from operators.result_writer import ResultWriter
from scripts.files import write_json
from scripts.models.provenance import NOTE


class MeasurementWriter(ResultWriter):
    """Write ``measurements.json`` and a structured report; see `scripts.inference.measurements.measurements`."""

    result = "measurements"

    def write(self, result: Mapping[str, Any], slices: list[Dataset]) -> None:
        """Write the measurements of a series."""
        self.save(structured_report(result, slices, self.algorithm))
        content = {
            "note": NOTE,
            "study_instance_uid": slices[0].StudyInstanceUID,
            "series_instance_uid": slices[0].SeriesInstanceUID,
            **result,
            "bundle": self.algorithm.name,
            **self.algorithm.provenance(),
        }
        write_json(content, self.folder / "measurements.json")


def structured_report(
    measurements: Mapping[str, Any], slices: Sequence[Dataset], algorithm: Algorithm
) -> hd.sr.Comprehensive3DSR:
    """Make the measurement report (TID 1500) of a series.

    Args:
        measurements: see `scripts.inference.measurements.measurements`.
        slices: the measured slices.
        algorithm: description of the bundle.

    Returns:
        The object.
    """
    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=algorithm.device_uid,
            manufacturer_name=algorithm.manufacturer,
            model_name=algorithm.name,
        ),
    )
    p_value = measurements.get("p_value")
    decisions = [(OUTSIDE_FITTED_RANGE, measurements["outside_fitted_range"])]
    if measurements.get("flagged") is not None:
        decisions.append((FLAGGED, measurements["flagged"]))
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier="Anomaly"),
        finding_category=codes.SCT.MorphologicallyAbnormalStructure,
        finding_type=codes.SCT.Lesion,
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=algorithm.name,
            version=algorithm.version,
            family=codes.DCM.ArtificialIntelligence,
            manufacturer=algorithm.manufacturer,
        ),
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
        source_images=[hd.sr.SourceImageForMeasurementGroup(data.SOPClassUID, data.SOPInstanceUID) for data in slices],
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    report = hd.sr.Comprehensive3DSR(
        evidence=slices,
        content=content,
        series_instance_uid=hd.UID(),
        series_number=9003,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=algorithm.manufacturer,
    )
    report.SeriesDescription = "Anomaly measurements, not for diagnosis"
    return report
