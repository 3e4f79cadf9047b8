"""Reader of a series as a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.deploy.core import Fragment, Image, Operator, OperatorSpec
from monai.deploy.core.domain.dicom_series import DICOMSeries
from monai.deploy.core.domain.dicom_series_selection import SelectedSeries, StudySelectedSeries
from monai.deploy.core.domain.dicom_study import DICOMStudy
from series import check_series, read_volume
from study import Header, Study


class SeriesReader(Operator):
    """Check and decode a series.

    It replaces three operators of the SDK, which silently drop slices that share a position, swap the two pixel
    spacings in the affine, use the value type of the first slice for all, and log descriptions.

    Named outputs:
        study_selected_series_list: for the writers: slices in the order of the volume, or one multi-frame image.
        image: an `Image` ``[W,H,D]`` with the affine of that array in RAS.

    Args:
        fragment: the app.
        args: arguments of `Operator`.
        study: the study.
        headers: headers of the series.
        kwargs: keyword arguments of `Operator`.
    """

    def __init__(self, fragment: Fragment, *args: Any, study: Study, headers: Sequence[Header], **kwargs: Any) -> None:
        self.study = study
        self.headers = headers
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        spec.output("study_selected_series_list")
        spec.output("image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Read the series and emit it.

        Raises:
            InputError: the series is no volume of whole files.
        """
        self.study.check_unreadable(self.headers)
        headers = self.study.without_copies(self.headers)
        check_series(headers)
        slices, volume = read_volume(self.study, headers)
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
