"""Writes the measurements, as a DICOM structured report and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
from anomaly_codes import ANOMALY_SCORE, BEYOND_LIMIT, MILLILITRE, N_REGIONS, OUTSIDE_FITTED_RANGE
from bundle import Algorithm
from highdicom.sr import Measurement
from monai.deploy.core import Fragment, Operator, OperatorSpec
from pydicom import Dataset
from pydicom.sr.codedict import codes

from scripts.provenance import NOTE
from scripts.whole_file import write_json


class MeasurementWriter(Operator):
    """Writes ``measurements.json`` and a structured report.

    Named inputs:
        measurements: see `scripts.measurements.measurements`.
        study_selected_series_list: with the series that was measured.

    Args:
        fragment: the app.
        args: for `Operator`.
        algorithm: what measured.
        folder: gets the files.
        kwargs: for `Operator`.
    """

    def __init__(self, fragment: Fragment, *args: Any, algorithm: Algorithm, folder: Path, **kwargs: Any) -> None:
        self.algorithm = algorithm
        self.folder = folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Name the ports."""
        spec.input("measurements")
        spec.input("study_selected_series_list")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write the files."""
        found = op_input.receive("measurements")
        series = op_input.receive("study_selected_series_list")[0].selected_series[0].series
        slices = [instance.get_native_sop_instance() for instance in series.get_sop_instances()]
        report = structured_report(found, slices, self.algorithm)
        self.folder.mkdir()
        report.save_as(self.folder / f"{report.SOPInstanceUID}.dcm")
        content = {
            "note": NOTE,
            "study_instance_uid": slices[0].StudyInstanceUID,
            "series_instance_uid": slices[0].SeriesInstanceUID,
            **found,
            "bundle": self.algorithm.name,
            **self.algorithm.provenance,
        }
        write_json(content, self.folder / "measurements.json")


def structured_report(
    found: Mapping[str, Any], slices: Sequence[Dataset], algorithm: Algorithm
) -> hd.sr.Comprehensive3DSR:
    """The measurement report (TID 1500) of a series.

    Args:
        found: see `scripts.measurements.measurements`.
        slices: what was measured.
        algorithm: what measured.

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
            Measurement(ANOMALY_SCORE, found["image_score"], codes.UCUM.NoUnits),
            Measurement(codes.SCT.Volume, found["anomalous_volume_ml"], MILLILITRE),
            Measurement(BEYOND_LIMIT, 100 * found["fraction_beyond_limit"], codes.UCUM.Percent),
            Measurement(N_REGIONS, found["n_regions"], codes.UCUM.NoUnits),
        ],
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(
                OUTSIDE_FITTED_RANGE, codes.SCT.Yes if found["outside_fitted_range"] else codes.SCT.No
            )
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
