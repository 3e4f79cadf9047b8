"""Writer of the map: a DICOM Parametric Map."""

from __future__ import annotations

import highdicom as hd
import numpy as np
from anomaly_codes import ANOMALY_SCORE
from bundle import Algorithm
from monai.deploy.core import Image
from pydicom import Dataset
from pydicom.sr.codedict import codes

from operators.result_writer import ResultWriter


class ParametricMapWriter(ResultWriter):
    """Write the calibrated map, float32, on the slices of its series."""

    result = "map"

    def write(self, result: Image, slices: list[Dataset]) -> None:
        """Write the map ``[D,H,W]`` of a series of D slices."""
        self.save(parametric_map(result.asnumpy(), slices, self.algorithm))


def parametric_map(scores: np.ndarray, slices: list, algorithm: Algorithm) -> hd.pm.ParametricMap:
    """Make the DICOM object of a map.

    Args:
        scores: calibrated map ``[D,H,W]``: 0 a typical normal patch, 1 the decision threshold.
        slices: the D source images, in order.
        algorithm: description of the bundle.

    Returns:
        The object.
    """
    meaning = hd.pm.RealWorldValueMapping(
        lut_label="ANOMALY_SCORE",
        lut_explanation="0: typical normal patch, 1: decision threshold",
        unit=codes.UCUM.NoUnits,
        value_range=(float(scores.min()), float(scores.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=ANOMALY_SCORE,
    )
    dataset = hd.pm.ParametricMap(
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
        content_description="Anomaly score in units of the decision threshold",
    )
    dataset.Laterality = slices[0].get("Laterality", "")  # required for paired body parts
    dataset.SeriesDescription = "Anomaly map, not for diagnosis"
    return dataset
