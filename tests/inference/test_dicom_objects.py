"""DICOM objects from arrays and headers; the app's tests compare them with the bundle's results."""

import shutil
import subprocess

import highdicom as hd
import numpy as np
import pydicom
import pytest

from demo.dicom_series import write_series
from scripts.inference.dicom_objects import (
    OUTSIDE_COMMENT,
    Algorithm,
    parametric_map,
    segmentation,
    structured_report,
)
from tests.tiny_cases import PATIENT, brain

ALGORITHM = Algorithm("Makers", "Anomaly", "1.0", "2.25.7")
MEASUREMENTS = {
    "image_score": 1.5,
    "anomalous_volume_ml": 2.0,
    "fraction_beyond_limit": 0.5,
    "n_regions": 1,
    "p_value": None,
    "outside_fitted_range": True,
}


@pytest.fixture
def slices(tmp_path):
    return write_series(tmp_path / "series", brain(0), np.diag([-1.0, -1.0, 3.0, 1.0]), SeriesNumber=4)


def all_objects(slices):
    scores = np.random.default_rng(0).random((len(slices), slices[0].Rows, slices[0].Columns)).astype(np.float32)
    return [
        segmentation(scores > 0.9, slices, ALGORITHM),
        parametric_map(scores, slices, ALGORITHM),
        structured_report(MEASUREMENTS, slices, ALGORITHM),
    ]


class TestReport:
    def test_first_line_warns_outside_the_fitted_range(self, slices, tmp_path):
        report = structured_report(MEASUREMENTS, slices, ALGORITHM)
        assert report.ContentSequence[0].TextValue == OUTSIDE_COMMENT
        report.save_as(tmp_path / "report.dcm")
        (group,) = hd.sr.srread(tmp_path / "report.dcm").content.get_image_measurement_groups()
        assert len(group.get_measurements()) == 4
        if shutil.which("dsrdump") is None:
            pytest.skip("NOT TESTED as a viewer prints it: no dsrdump; Debian's dcmtk has it")
        printed = subprocess.run(["dsrdump", "+Pl", tmp_path / "report.dcm"], capture_output=True, text=True).stdout
        title = next(n for n, line in enumerate(printed.splitlines()) if line.startswith("<CONTAINER"))
        assert OUTSIDE_COMMENT in printed.splitlines()[title + 1]

    def test_no_warning_inside_it(self, slices):
        report = structured_report({**MEASUREMENTS, "outside_fitted_range": False}, slices, ALGORITHM)
        assert OUTSIDE_COMMENT not in str(report)


class TestAnyObject:
    @pytest.mark.parametrize("number", [None, "", 0, -3, 4, 2**31 - 1])
    def test_series_numbers_are_distinct_and_valid(self, slices, number):
        for data in slices:
            data.SeriesNumber = number
        numbers = [written.SeriesNumber for written in all_objects(slices)]
        assert len(set(numbers)) == 3 and all(0 < n < 2**31 for n in numbers)
        assert numbers == [written.SeriesNumber for written in all_objects(slices)]

    def test_invalid_values_become_empty_and_sources_stay(self, slices):
        for data in slices:
            data.PatientSex, data.PatientBirthDate = "0000", "1970-4711"
            del data.StudyID, data.PatientName
        for written in all_objects(slices):
            assert (written.PatientSex, written.PatientBirthDate, written.PatientName) == ("", "", "")
        assert slices[0].PatientSex == "0000" and "StudyID" not in slices[0] and "PixelData" in slices[0]

    def test_nothing_is_logged_about_the_patient(self, slices, caplog):
        for data in slices:
            data.PatientName, data.PatientBirthDate = PATIENT, "1970-4711"
        all_objects(slices)
        assert "Doe" not in caplog.text and "4711" not in caplog.text


class TestSegmentation:
    def test_an_empty_mask_has_empty_frames(self, slices):
        written = segmentation(np.zeros((len(slices), slices[0].Rows, slices[0].Columns)), slices, ALGORITHM)
        assert written.NumberOfFrames == len(slices) and not written.pixel_array.any()

    def test_empty_slices_have_no_frames(self, slices):
        mask = np.zeros((len(slices), slices[0].Rows, slices[0].Columns), bool)
        mask[1, 2, 3] = True
        written = segmentation(mask, slices, ALGORITHM)
        assert written.NumberOfFrames == 1
        np.testing.assert_array_equal(written.pixel_array, mask[1])
        source = written.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == slices[1].SOPInstanceUID


def test_importing_stops_warnings_that_quote_headers():
    assert pydicom.config.settings.reading_validation_mode == pydicom.config.IGNORE
