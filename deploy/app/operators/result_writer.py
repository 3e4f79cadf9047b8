"""What the writers of DICOM objects have in common."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from bundle import Algorithm
from monai.deploy.core import Fragment, Operator, OperatorSpec
from pydicom import Dataset


class ResultWriter(Operator):
    """Writes into a folder what one result of a series becomes.

    Named inputs, of which the first is named by ``result``:
        result: what is written.
        study_selected_series_list: with the series, its slices in order.

    Args:
        fragment: the app.
        args: for `Operator`.
        algorithm: what made the result.
        folder: gets the files.
        kwargs: for `Operator`.
    """

    result: str

    def __init__(self, fragment: Fragment, *args: Any, algorithm: Algorithm, folder: Path, **kwargs: Any) -> None:
        self.algorithm = algorithm
        self.folder = folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Name the ports."""
        spec.input(self.result)
        spec.input("study_selected_series_list")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write the files."""
        found = op_input.receive(self.result)
        series = op_input.receive("study_selected_series_list")[0].selected_series[0].series
        self.folder.mkdir()
        self.write(found, [instance.get_native_sop_instance() for instance in series.get_sop_instances()])

    @abstractmethod
    def write(self, found: Any, slices: list[Dataset]) -> None:
        """Write a result of a series of these slices."""

    def save(self, written: Dataset) -> None:
        """Write a DICOM object under its UID."""
        written.save_as(self.folder / f"{written.SOPInstanceUID}.dcm")
