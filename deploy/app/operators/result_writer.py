"""Base class of the writers of DICOM objects."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from bundle import Algorithm
from monai.deploy.core import Fragment, Operator, OperatorSpec
from pydicom import Dataset


class ResultWriter(Operator):
    """Write one result of a series into a folder.

    Named inputs; the attribute ``result`` names the first:
        result: the result.
        study_selected_series_list: holds the series, its slices in order.

    Args:
        fragment: the app.
        args: arguments of `Operator`.
        algorithm: description of the bundle.
        folder: output folder, which must not exist.
        kwargs: keyword arguments of `Operator`.
    """

    result: str

    def __init__(self, fragment: Fragment, *args: Any, algorithm: Algorithm, folder: Path, **kwargs: Any) -> None:
        self.algorithm = algorithm
        self.folder = folder
        super().__init__(fragment, *args, **kwargs)

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

    @abstractmethod
    def write(self, result: Any, slices: list[Dataset]) -> None:
        """Write the result of a series with these slices."""

    def save(self, dataset: Dataset) -> None:
        """Write a DICOM object under its UID."""
        dataset.save_as(self.folder / f"{dataset.SOPInstanceUID}.dcm")
