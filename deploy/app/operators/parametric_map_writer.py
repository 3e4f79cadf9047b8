"""Writes the map as a DICOM Parametric Map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from anomaly_codes import ANOMALY_SCORE
from bundle import Algorithm
from monai.deploy.core import Fragment, Operator, OperatorSpec
from pydicom.sr.codedict import codes


class ParametricMapWriter(Operator):
    """Writes the calibrated map as 32-bit floating point numbers, on the slices that it was made of.

    Named inputs:
        map: an `Image` ``[D,H,W]``.
        study_selected_series_list: with the series, its D slices in order.

    Args:
        fragment: the app.
        args: for `Operator`.
        algorithm: what made the map.
        folder: gets the file.
        kwargs: for `Operator`.
    """

    def __init__(self, fragment: Fragment, *args: Any, algorithm: Algorithm, folder: Path, **kwargs: Any) -> None:
        self.algorithm = algorithm
        self.folder = folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Name the ports."""
        spec.input("map")
        spec.input("study_selected_series_list")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write the file."""
        scores = op_input.receive("map").asnumpy()
        series = op_input.receive("study_selected_series_list")[0].selected_series[0].series
        slices = [instance.get_native_sop_instance() for instance in series.get_sop_instances()]
        written = parametric_map(scores, slices, self.algorithm)
        self.folder.mkdir()
        written.save_as(self.folder / f"{written.SOPInstanceUID}.dcm")


def parametric_map(scores: np.ndarray, slices: list, algorithm: Algorithm) -> hd.pm.ParametricMap:
    """The DICOM object of a map.

    Args:
        scores: calibrated map ``[D,H,W]``: 0 a typical normal patch, 1 the decision limit.
        slices: the D source images, in order.
        algorithm: what made the map.

    Returns:
        The object.
    """
    meaning = hd.pm.RealWorldValueMapping(
        lut_label="ANOMALY_SCORE",
        lut_explanation="0: typical normal patch, 1: decision limit",
        unit=codes.UCUM.NoUnits,
        value_range=(float(scores.min()), float(scores.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=ANOMALY_SCORE,
    )
    written = hd.pm.ParametricMap(
        slices,
        scores,
        series_instance_uid=hd.UID(),
        series_number=9002,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=algorithm.manufacturer,
        manufacturer_model_name=algorithm.name,
        software_versions=algorithm.version,
        device_serial_number=algorithm.device_uid,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[meaning],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=1.0, window_width=2.0)],
        content_label="ANOMALY_MAP",
        content_description="Anomaly score in units of the decision limit",
    )
    written.Laterality = slices[0].get("Laterality", "")  # must be there for a paired part of the body
    written.SeriesDescription = "Anomaly map, not for diagnosis"
    return written
