"""Cases of a folder, their split and their errors."""

import json
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from scripts.data.cases import CaseDataset, NormalDataset, find_cases, raise_failed, sentence, split_cases
from scripts.errors import InputError
from scripts.files import write_record
from tests.tiny_cases import save


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_dicom(folder, series, n_slices=3, suffix=".dcm"):
    """Write a series of small MR slices."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(n_slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{series[-4:]}_{index}{suffix}"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID = series
        data.Rows = data.Columns = 4
        data.SamplesPerPixel, data.BitsAllocated = 1, 16
        data.PixelSpacing, data.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [0, 0, 2 * index]
        data.PixelData = np.zeros((4, 4), np.uint16).tobytes()
        data.save_as(path, enforce_file_format=True)


def found(root, pattern="*"):
    """Find cases, and return their paths relative to the root, or "error", by name."""
    cases = find_cases(root, pattern)
    names = [case["case"] for case in cases]
    assert len(set(names)) == len(names)
    assert not any("/" in name for name in names)
    return {
        case["case"]: "error" if "error" in case else Path(case["image"]).relative_to(root).as_posix() for case in cases
    }


class TestFindCases:
    def test_flat_files(self, tmp_path):
        touch(
            tmp_path,
            "b.nii.gz",
            "a.nii",
            "c.PNG",
            "d.jpeg",
            "e.jpg",
            "f.mha",
            "g.nrrd",
            "notes.txt",
            "table.csv",
            "x.gz",
        )
        assert found(tmp_path) == {
            "a": "a.nii",
            "b": "b.nii.gz",
            "c": "c.PNG",
            "d": "d.jpeg",
            "e": "e.jpg",
            "f": "f.mha",
            "g": "g.nrrd",
        }

    def test_folder_per_case(self, tmp_path):
        touch(tmp_path, "sub-1/image.nii.gz", "sub-2/image.nii.gz", "sub-2/notes.txt")
        assert found(tmp_path) == {"sub-1": "sub-1/image.nii.gz", "sub-2": "sub-2/image.nii.gz"}

    def test_several_images_per_folder(self, tmp_path):
        touch(tmp_path, "sub-1/t1.nii.gz", "sub-1/flair.nii.gz", "sub-2/t1.nii.gz")
        assert found(tmp_path) == {
            "sub-1_flair": "sub-1/flair.nii.gz",
            "sub-1_t1": "sub-1/t1.nii.gz",
            "sub-2": "sub-2/t1.nii.gz",
        }

    def test_nested_class_folders(self, tmp_path):
        touch(tmp_path, "test/yes/1.png", "test/yes/2.png", "test/no/1.png", "test/no/2.png", "top.png")
        assert found(tmp_path) == {
            "top": "top.png",
            "test_no_1": "test/no/1.png",
            "test_no_2": "test/no/2.png",
            "test_yes_1": "test/yes/1.png",
            "test_yes_2": "test/yes/2.png",
        }

    def test_order(self, tmp_path):
        touch(tmp_path, "c.png", "a.png", "b.png")
        assert list(found(tmp_path)) == ["a", "b", "c"]
        assert find_cases(tmp_path) == find_cases(str(tmp_path))

    def test_hidden_files_are_skipped(self, tmp_path):
        touch(tmp_path, "a.png", "._a.png", ".DS_Store", ".cache/b.png", "c/.hidden.png", "c/d.png")
        assert found(tmp_path) == {"a": "a.png", "c": "c/d.png"}

    def test_single_file(self, tmp_path):
        touch(tmp_path, "scan.nii.gz", "other.nii.gz")
        path = tmp_path / "scan.nii.gz"
        assert find_cases(path) == [{"case": "scan", "image": str(path)}]

    @pytest.mark.parametrize("names", [(), ("notes.txt",), ("sub/notes.txt", ".hidden.png")])
    def test_folder_without_images_raises(self, tmp_path, names):
        touch(tmp_path, *names)
        with pytest.raises(InputError, match="There are no cases in"):
            find_cases(tmp_path)

    @pytest.mark.parametrize("path", ["", "/no/such/folder"])
    def test_missing_folder_raises(self, path):
        with pytest.raises(InputError, match=f"folder '{path}' does not exist"):
            find_cases(path)

    def test_links_are_followed_once(self, tmp_path):
        touch(tmp_path, "data/a.png", "data/deep/b.png", "elsewhere/c.png")
        (tmp_path / "data" / "deep" / "parent").symlink_to(tmp_path / "data")
        (tmp_path / "data" / "all").symlink_to(tmp_path)
        (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "data" / "again").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "data" / "d.png").symlink_to(tmp_path / "elsewhere" / "c.png")
        images = [Path(case["image"]).resolve() for case in find_cases(tmp_path / "data")]
        assert sorted(image.name for image in images) == ["a.png", "b.png", "c.png", "c.png"]

    def test_too_deep_folder_is_one_failed_case(self, tmp_path):
        touch(tmp_path, "/".join(["a.png"]), "/".join([*("d" * 101), "b.png"]))
        cases = find_cases(tmp_path)
        assert [case.get("image", "")[-5:] for case in cases] == ["a.png", ""]
        assert "more than 100 folders deep" in cases[1]["error"]

    def test_unreadable_folder_is_one_failed_case(self, tmp_path, monkeypatch):
        touch(tmp_path, "a/1.png", "b/1.png")
        listed = Path.iterdir

        def refusing(folder):
            if folder.name == "a":
                raise PermissionError(13, "Permission denied", str(folder))
            return listed(folder)

        monkeypatch.setattr(Path, "iterdir", refusing)
        first, second = find_cases(tmp_path)
        assert first == {"case": "a", "error": "the folder cannot be read (Permission denied); check its permissions"}
        assert second["case"] == "b"

    def test_results_are_not_cases(self, tmp_path):
        touch(tmp_path, "a.png", "results/a/a_overlay.png", "results/plot.png", "link.png")
        write_record(tmp_path / "results", {})
        assert set(found(tmp_path)) == {"a", "link"}
        for folder in ("results", "results/../results"):
            with pytest.raises(InputError, match="holds results of this program"):
                find_cases(tmp_path / folder)

    def test_exclude_resolves_links(self, tmp_path):
        touch(tmp_path, "data/a.png", "data/out/b.png", "data/out/deep/c.png")
        (tmp_path / "data" / "d").symlink_to(tmp_path / "data" / "out" / "deep")
        (tmp_path / "data" / "e.png").symlink_to(tmp_path / "data" / "out" / "b.png")
        (tmp_path / "out").symlink_to(tmp_path / "data" / "out")
        assert [case["case"] for case in find_cases(tmp_path / "data", exclude=tmp_path / "out")] == ["a"]
        inside = find_cases(tmp_path / "data", exclude=tmp_path)  # a parent of the data folder excludes nothing
        assert {case["case"] for case in inside} >= {"a", "out_deep"}

    def test_paths_are_absolute(self, tmp_path, monkeypatch):
        touch(tmp_path, "data/a.png")
        monkeypatch.chdir(tmp_path)
        assert find_cases("data") == [{"case": "a", "image": str(tmp_path / "data" / "a.png")}]

    def test_configs_exclude_their_output(self):
        for config, cases in (("train", "normals"), ("inference", "cases")):
            config_content = json.loads((Path(__file__).parents[2] / "configs" / f"{config}.json").read_text())
            assert config_content[cases]["exclude"] == "@output_dir"


class TestCaseNames:
    def test_one_stem_with_several_suffixes(self, tmp_path):
        touch(tmp_path, "a.nii.gz", "a.png", "a.jpg")
        assert sorted(found(tmp_path).values()) == ["a.jpg", "a.nii.gz", "a.png"]

    def test_names_are_unique(self, tmp_path):
        touch(tmp_path, "a_b.png", "a/b.png", "a/c.png", "a.png", "a.jpg", "a_2.png")
        assert len(found(tmp_path)) == 6

    def test_folder_and_file_of_similar_names(self, tmp_path):
        touch(tmp_path, "x/a.png", "x_1.png")
        assert found(tmp_path) == {"x": "x/a.png", "x_1": "x_1.png"}

    def test_names_are_printable_and_short(self, tmp_path):
        names = ["new\nline", "esc\x1b[2J", "right\u202eto left", "x" * 240, "x" * 239 + "y", "ok", "\u00e4" * 120]
        touch(tmp_path, *(f"{name}.png" for name in names))
        cases = find_cases(tmp_path)
        assert len({case["case"] for case in cases}) == len(names)
        assert {"new_line", "esc_[2J", "right_to left", "ok"} < {case["case"] for case in cases}
        assert all(case["case"].isprintable() and len(f"{case['case']}_overlay.png".encode()) < 255 for case in cases)
        assert all(Path(case["image"]).is_file() for case in cases)
        assert find_cases(tmp_path) == cases

    def test_name_outside_utf_8_is_one_failed_case(self, tmp_path):
        touch(tmp_path, "ok.png")
        (tmp_path / os.fsdecode(b"bad\xff.png")).touch()
        bad, ok = find_cases(tmp_path)
        assert bad == {"case": "bad_", "error": "its path is not UTF-8; rename the file or folder"}
        assert "image" in ok


class TestPattern:
    def test_pattern_selects_files(self, tmp_path):
        touch(tmp_path, "1/FLAIR.nii.gz", "1/T1.nii.gz", "2/FLAIR_lesion.nii.gz", "2/T1.nii.gz")
        assert found(tmp_path, "FLAIR*") == {"1": "1/FLAIR.nii.gz", "2": "2/FLAIR_lesion.nii.gz"}
        assert found(tmp_path, "*.nii.gz").keys() == {"1_FLAIR", "1_T1", "2_FLAIR_lesion", "2_T1"}

    @pytest.mark.parametrize(
        ("layout", "images", "labels"),
        [("{state}/{kind}/{n}.png", "img/*", "label/*"), ("{kind}/{state}/{n}.png", "img/*/*", "label/*/*")],
    )
    def test_images_and_labels_share_case_names(self, tmp_path, layout, images, labels):
        for n in range(3):
            touch(tmp_path, layout.format(state="good", kind="img", n=n))
        for kind in ("img", "label"):
            touch(tmp_path, layout.format(state="Ungood", kind=kind, n=7))  # alone in its folder
        assert set(found(tmp_path, images)) == {"good_0", "good_1", "good_2", "Ungood_7"}
        assert found(tmp_path, labels) == {"Ungood_7": layout.format(state="Ungood", kind="label", n=7)}

    def test_literal_folders_leave_the_name(self, tmp_path):
        touch(tmp_path, "a/v1/img/1.png", "b/v2/img/1.png", "img/v1/raw/1.png")
        assert found(tmp_path, "v*/img/*") == {"a_v1_1": "a/v1/img/1.png", "b_v2_1": "b/v2/img/1.png"}
        assert found(tmp_path, "v1/*/*.png") == {"a_img_1": "a/v1/img/1.png", "img_raw_1": "img/v1/raw/1.png"}
        assert found(tmp_path / "a" / "v1" / "img", "img/*") == {"1": "1.png"}

    def test_empty_pattern_raises(self, tmp_path):
        touch(tmp_path, "a.png")
        with pytest.raises(InputError, match="pattern must not be empty"):
            find_cases(tmp_path, "")

    def test_no_match_raises(self, tmp_path):
        touch(tmp_path, "a.png")
        with pytest.raises(InputError, match=r"no cases in .*'T2\*'"):
            find_cases(tmp_path, "T2*")


class TestDicom:
    def test_folders_are_cases(self, tmp_path):
        write_dicom(tmp_path / "patient" / "T1", generate_uid())
        write_dicom(tmp_path / "patient" / "FLAIR", generate_uid(), suffix="")
        touch(tmp_path, "patient/FLAIR/notes.txt")
        assert found(tmp_path) == {"patient_FLAIR": "patient/FLAIR", "patient_T1": "patient/T1"}
        assert found(tmp_path, "FL*") == {"patient_FLAIR": "patient/FLAIR"}
        assert found(tmp_path, "patient/FL*") == {"FLAIR": "patient/FLAIR"}
        assert found(tmp_path / "patient" / "FLAIR", "FL*") == {"FLAIR": "."}

    def test_folder_itself_is_a_series(self, tmp_path):
        write_dicom(tmp_path / "series", generate_uid())
        assert find_cases(tmp_path / "series") == [{"case": "series", "image": str(tmp_path / "series"), "n_files": 3}]

    def test_two_series_are_one_failed_case(self, tmp_path):
        write_dicom(tmp_path / "both", generate_uid(), n_slices=1)
        write_dicom(tmp_path / "both", generate_uid(), n_slices=1)
        touch(tmp_path, "a.png")
        by_name = {case["case"]: case for case in find_cases(tmp_path)}
        assert "image" not in by_name["both"]
        assert "holds 2 DICOM series" in by_name["both"]["error"]
        assert "image" in by_name["a"]

    def test_other_files_are_skipped(self, tmp_path):
        write_dicom(tmp_path / "series", generate_uid())
        (tmp_path / "series" / "broken.dcm").write_bytes(b"not dicom at all" * 100)
        (tmp_path / "series" / "empty.dcm").touch()
        assert found(tmp_path) == {"series": "series"}

    def test_dicomdir_is_skipped(self, tmp_path):
        write_dicom(tmp_path / "series", generate_uid())
        directory = pydicom.dcmread(next((tmp_path / "series").iterdir()))
        del directory.SeriesInstanceUID
        directory.save_as(tmp_path / "DICOMDIR")
        assert found(tmp_path) == {"series": "series"}


def cases_of(n):
    return [{"case": str(index), "image": f"{index}.nii.gz"} for index in range(n)]


def names(cases):
    return [case["case"] for case in cases]


class TestSplitCases:
    @pytest.mark.parametrize(
        ("n", "fraction", "held_out"), [(25, 0.2, 5), (10, 0.33, 3), (2, 0.5, 1), (3, 0.99, 2), (40, 0.001, 1)]
    )
    def test_disjoint_and_complete(self, n, fraction, held_out):
        fit_on, validate_on = split_cases(cases_of(n), None, fraction, seed=0)
        assert len(validate_on) == held_out
        assert sorted(names(fit_on) + names(validate_on)) == sorted(names(cases_of(n)))
        assert len(fit_on) >= 1

    def test_seed(self):
        first, again, other = (names(split_cases(cases_of(30), None, 0.3, seed=seed)[1]) for seed in (1, 1, 2))
        assert first == again
        assert first != other
        assert first != names(cases_of(30)[-9:])

    def test_order_is_kept(self):
        for part in split_cases(cases_of(30), None, 0.3, seed=1):
            assert names(part) == sorted(names(part), key=int)

    def test_validation_dir(self, tmp_path):
        touch(tmp_path, "v1.png", "v2.png", "v2.jpg")
        fit_on, validate_on = split_cases(cases_of(3), tmp_path, 0.2, seed=0, pattern="*.png")
        assert names(fit_on) == ["0", "1", "2"]
        assert names(validate_on) == ["v1", "v2"]
        assert len(split_cases(cases_of(1), str(tmp_path), 0.2, seed=0)[0]) == 1

    def test_missing_validation_dir_raises(self, tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            split_cases(cases_of(3), tmp_path / "no", 0.2, seed=0)

    @pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
    def test_fraction_out_of_range_raises(self, fraction):
        with pytest.raises(InputError, match="validation_fraction must lie between 0 and 1"):
            split_cases(cases_of(10), None, fraction, seed=0)

    def test_single_case_raises(self):
        with pytest.raises(InputError, match="at least two normal cases, or validation_dir"):
            split_cases(cases_of(1), None, 0.2, seed=0)


def transform(case):
    if case["case"] == "1":
        raise InputError("the image has 6 volumes")
    if case["case"] == "2":
        raise RuntimeError("applying transform failed") from OSError("truncated file\nand more of that")
    if case["case"] == "3":
        try:
            raise InputError("every voxel is 0")
        except InputError as error:
            raise RuntimeError("applying transform failed") from error
    return {**case, "image": 5}


class TestCaseDataset:
    def test_exceptions_become_failed_cases(self):
        dataset = CaseDataset([*cases_of(4), {"case": "4", "error": "two series"}], transform)
        items = [dataset[index] for index in range(5)]
        assert items[0] == {"case": "0", "image": 5}
        assert items[1] == {"case": "1", "error": "the image has 6 volumes"}
        assert items[2]["case"] == "2"
        assert items[2]["error"].startswith(
            "it could not be read; the file is damaged or of a kind that is not supported"
        )
        assert "truncated" not in items[2]["error"]  # messages of libraries go to the log
        assert items[3] == {"case": "3", "error": "every voxel is 0"}
        assert items[4] == {"case": "4", "error": "two series"}

    def test_interrupt_is_raised(self):
        def interrupted(case):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            CaseDataset(cases_of(1), interrupted)[0]


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (
                RuntimeError("amax(): Expected reduction dim to be specified for input.numel() == 0\n/home/doe/x.nii"),
                "",
            ),
            (ZeroDivisionError(), ""),
            (ValueError("x" * 5000), ""),
            (FileNotFoundError(2, "No such file or directory", "/home/doe/x.nii"), " (No such file or directory)"),
            (MemoryError("Unable to allocate 5 TiB"), " for lack of memory"),
        ],
    )
    def test_sentence_omits_library_messages(self, error, expected):
        assert sentence(error, "read", "look") == f"it could not be read{expected}; look"

    def test_raise_failed_lists_cases(self):
        raise_failed([], 3, "the others are finished")
        with pytest.raises(InputError) as raised:
            raise_failed([("a", "it is empty"), ("b", "it is black")], 5, "the others are finished")
        assert str(raised.value) == "2 of 5 cases failed (the others are finished):\n  a: it is empty\n  b: it is black"


class TestNormalDataset:
    def test_only_empty_labels_are_normal(self, tmp_path):
        for name, value in (("empty", 0), ("marked", 1)):
            label = np.zeros((4, 4, 2), np.uint8)
            label[1, 1, 1] = value
            save(tmp_path / f"{name}.nii.gz", label)
        labels = [
            {"image": f"/in/{name}.nii.gz", "label": str(tmp_path / f"{name}.nii.gz")} for name in ("empty", "marked")
        ]
        unlabelled = {"case": "own", "image": "/in/7.nii.gz"}
        assert NormalDataset([*labels, unlabelled]).data == [{"case": "empty", **labels[0]}, unlabelled]
        for data in ([], labels[1:]):
            with pytest.raises(InputError, match=f"None of {len(data)} cases is normal"):
                NormalDataset(data)
