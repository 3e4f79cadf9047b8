"""Hands on one series of a study as a volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.deploy.core import Fragment, Image, Operator, OperatorSpec
from monai.deploy.core.domain.dicom_series import DICOMSeries
from monai.deploy.core.domain.dicom_series_selection import SelectedSeries, StudySelectedSeries
from monai.deploy.core.domain.dicom_study import DICOMStudy
from series import check_series, choose_series, read_headers, read_volume


class SeriesReader(Operator):
    """Reads, chooses, checks and decodes a series.

    The SDK has three operators for it, of which this takes the place: they drop slices that share a position without a
    word, take the two pixel spacings the wrong way round in the affine, give all slices the type of the first one's
    values, and log descriptions.

    Named outputs:
        study_selected_series_list: the series, its slices in the order of the volume, for the writers.
        image: an `Image` ``[W,H,D]`` with the affine of that array in RAS.

    Args:
        fragment: the app.
        args: for `Operator`.
        folder: with DICOM files.
        pattern: what the SeriesDescription must match, see `choose_series`.
        kwargs: for `Operator`.
    """

    def __init__(self, fragment: Fragment, *args: Any, folder: Path, pattern: str, **kwargs: Any) -> None:
        self.folder = folder
        self.pattern = pattern
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Name the ports."""
        spec.output("study_selected_series_list")
        spec.output("image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Read.

        Raises:
            InputError: the study has nothing that can be looked at.
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
