"""Separation of held-out cases from those of the fit, also through links."""

import logging

import pytest

from scripts.data.cases import find_cases, split_cases
from scripts.errors import InputError
from tests.tiny_cases import brain, save, save_dicom_series

pytestmark = pytest.mark.slow


def names(cases):
    return sorted(case["case"] for case in cases)


def split(dataset_dir, validation_dir):
    return split_cases(find_cases(dataset_dir), validation_dir, 0.2, 0)


class TestHeldOut:
    def test_validation_dir_inside_dataset_dir(self, tmp_path, caplog):
        for name in ("a", "b", "validation/c", "validation/d"):
            save(tmp_path / f"{name}.nii.gz", brain(0))
        with caplog.at_level(logging.INFO, logger="scripts.data.cases"):
            train, validation = split(tmp_path, tmp_path / "validation")
        assert names(train) == ["a", "b"] and names(validation) == ["c", "d"]
        assert "2 of 4 cases of dataset_dir are in validation_dir: not fitted on" in caplog.text

    @pytest.mark.parametrize("linked", ["file", "folder", "from validation"])
    def test_links_are_resolved(self, tmp_path, linked):
        save(tmp_path / "data" / "a.nii.gz", brain(0))
        save(tmp_path / "held" / "b.nii.gz", brain(1))
        held = tmp_path / "held"
        if linked == "file":
            (tmp_path / "data" / "other.nii.gz").symlink_to(tmp_path / "held" / "b.nii.gz")
        elif linked == "folder":
            (tmp_path / "data" / "other").symlink_to(tmp_path / "held")
        else:
            save(tmp_path / "data" / "c.nii.gz", brain(1))
            held = tmp_path / "links"
            held.mkdir()
            (held / "d.nii.gz").symlink_to(tmp_path / "data" / "c.nii.gz")
        train, validation = split(tmp_path / "data", held)
        assert names(train) == ["a"] and len(validation) == 1

    @pytest.mark.parametrize("linked", [False, True])
    def test_dicom_folders(self, tmp_path, linked):
        save_dicom_series(tmp_path / "data" / "one", brain(0))
        save_dicom_series(tmp_path / "data" / "two", brain(1))
        held = tmp_path / "data" / "two"
        if linked:  # a folder of links to the files
            held = tmp_path / "held" / "two"
            held.mkdir(parents=True)
            for file in (tmp_path / "data" / "two").iterdir():
                (held / file.name).symlink_to(file)
        train, validation = split(tmp_path / "data", held)
        assert names(train) == ["one"] and len(validation) == 1

    def test_no_case_left_raises(self, tmp_path):
        save(tmp_path / "a.nii.gz", brain(0))
        with pytest.raises(InputError, match="All 1 cases of dataset_dir lie in validation_dir"):
            split(tmp_path, tmp_path)

    def test_equal_names_in_other_folders(self, tmp_path):
        save(tmp_path / "data" / "a.nii.gz", brain(0))
        save(tmp_path / "held" / "a.nii.gz", brain(0))
        train, validation = split(tmp_path / "data", tmp_path / "held")
        assert len(train) == len(validation) == 1
