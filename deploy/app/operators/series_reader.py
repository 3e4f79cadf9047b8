"""Reader of one series of a study as a volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.deploy.core import Fragment, Image, Operator, OperatorSpec
from monai.deploy.core.domain.dicom_series import DICOMSeries
from monai.deploy.core.domain.dicom_series_selection import SelectedSeries, StudySelectedSeries
from monai.deploy.core.domain.dicom_study import DICOMStudy
from series import check_series, choose_series, read_headers, read_volume


class SeriesReader(Operator):
    """Choose, check and decode a series.

    It replaces three operators of the SDK, which silently drop slices that share a position, swap the two pixel
    spacings in the affine, use the value type of the first slice for all, and log descriptions.

    Named outputs:
        study_selected_series_list: the series, its slices in the order of the volume, for the writers.
        image: an `Image` ``[W,H,D]`` with the affine of that array in RAS.

    Args:
        fragment: the app.
        args: arguments of `Operator`.
        folder: folder of DICOM files.
        pattern: pattern for the SeriesDescription, see `choose_series`.
        kwargs: keyword arguments of `Operator`.
    """

    def __init__(self, fragment: Fragment, *args: Any, folder: Path, pattern: str, **kwargs: Any) -> None:
        self.folder = folder
        self.pattern = pattern
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        spec.output("study_selected_series_list")
        spec.output("image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Read the series and emit it.

        Raises:
            InputError: the study has no usable series.
        """
        headers = choose_series(read_headers(self.folder), self.pattern)
        check_series(headers)
        slices, volume = read_volume(headers)
        study = DICOMStudy(slices[0].StudyInstanceUID)
        series = DICOMSeries(slices[0].SeriesInstanceUID)
        study.add_series(series)
        for data in slices:
            series.add_sop_instance(data)
        selected = StudySelectedSeries(study)
        selected.add_selected_series(SelectedSeries("", series))
        op_output.emit([selected], "study_selected_series_list")

        columns_first = volume.permute_spatial_axes([2, 1, 0])
        affine = columns_first.get_affine("RAH")
        metadata = {"affine": affine, "original_affine": affine, "original_channel_dim": "no_channel"}
        op_output.emit(Image(columns_first.array, metadata), "image")
