"""Writers of the DICOM objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monai.deploy.core import Fragment, Image, Operator, OperatorSpec
from pydicom import Dataset

from scripts.files import write_json
from scripts.inference.dicom_objects import Algorithm, structured_report
from scripts.models.provenance import NOTE


class ObjectWriter(Operator):
    """Write one result of a series as a DICOM object into a folder.

    Named inputs:
        <name of the operator>: the result; of an `Image`, its array ``[D,H,W]``.
        study_selected_series_list: holds the series, its slices in order.

    Args:
        fragment: the app.
        args: arguments of `Operator`.
        name: name of the operator.
        make: makes the object of a result, see `scripts.inference.dicom_objects`.
        algorithm: description of the bundle.
        folder: output folder, which must not exist.
        kwargs: keyword arguments of `Operator`.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        name: str,
        make: Callable[[Any, list[Dataset], Algorithm], Dataset],
        algorithm: Algorithm,
        folder: Path,
        **kwargs: Any,
    ) -> None:
        self.result = name
        self.make = make
        self.algorithm = algorithm
        self.folder = folder
        super().__init__(fragment, *args, name=name, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        spec.input(self.result)
        spec.input("study_selected_series_list")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write the files."""
        result = op_input.receive(self.result)
        series = op_input.receive("study_selected_series_list")[0].selected_series[0].series
        self.folder.mkdir()
        self.write(result, [instance.get_native_sop_instance() for instance in series.get_sop_instances()])

    def write(self, result: Any, slices: list[Dataset]) -> None:
        """Write the result of a series with these slices under the UID of its object."""
        array = result.asnumpy() if isinstance(result, Image) else result
        dataset = self.make(array, slices, self.algorithm)
        dataset.save_as(self.folder / f"{dataset.SOPInstanceUID}.dcm")


class MeasurementWriter(ObjectWriter):
    """Write the structured report and ``measurements.json``; see `scripts.inference.measurements.measurements`.

    Args:
        args: arguments of `ObjectWriter`.
        provenance: returns settings, weights and versions; see `scripts.models.provenance`.
        kwargs: keyword arguments of `ObjectWriter`.
    """

    def __init__(self, *args: Any, provenance: Callable[[], dict[str, Any]], **kwargs: Any) -> None:
        self.provenance = provenance
        super().__init__(*args, make=structured_report, **kwargs)

    def write(self, result: Mapping[str, Any], slices: list[Dataset]) -> None:
        """Write the measurements of a series."""
        super().write(result, slices)
        content = {
            "note": NOTE,
            "study_instance_uid": slices[0].StudyInstanceUID,
            "series_instance_uid": slices[0].SeriesInstanceUID,
            **result,
            "bundle": self.algorithm.name,
            **self.provenance(),
        }
        write_json(content, self.folder / "measurements.json")
