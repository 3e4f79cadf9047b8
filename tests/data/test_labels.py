"""Labels: search by name, alignment with the image, and errors for labels that do not fit."""

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, LoadImage
from PIL import Image

from scripts.data.cases import find_cases, sentence
from scripts.data.images import ImageFileReader
from scripts.data.labels import AddGroundTruthd, CaseLabels
from scripts.errors import InputError

AFFINE = np.array([[-0.9, 0.01, 0, 30], [0.02, 1.1, 0.03, -25], [0, -0.02, 4.0, 7], [0, 0, 0, 1]])
MASK = np.zeros((20, 24, 5), np.uint8)
MASK[3:6, 10:14, 1:3] = 1


def save(path, values, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)


def load(path):
    return LoadImage(ensure_channel_first=True)(path, ImageFileReader())


def truth(folder, label, affine=AFFINE):
    save(folder / "images" / "a.nii.gz", np.ones(MASK.shape, np.int16))
    save(folder / "labels" / "a.nii.gz", label, affine)
    return CaseLabels(find_cases(folder / "images"), folder / "labels").truth("a", load(folder / "images" / "a.nii.gz"))


SHIFTED = AFFINE + np.array([[0, 0, 0, 3.0]] + 3 * [[0] * 4])


class TestTruth:
    def test_label_lies_on_its_image(self, tmp_path):
        is_anomalous, mask = truth(tmp_path, MASK)
        assert is_anomalous and np.array_equal(mask, MASK == 1)
        is_anomalous, mask = truth(tmp_path, 0 * MASK)
        assert is_anomalous is False and not mask.any()

    def test_axis_order_value_255_and_small_shifts(self, tmp_path):
        label = nib.Nifti1Image(MASK, AFFINE)
        reoriented = label.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
        assert reoriented.shape != label.shape
        assert np.array_equal(truth(tmp_path, np.asarray(reoriented.dataobj), reoriented.affine).mask, MASK == 1)
        assert np.array_equal(truth(tmp_path, MASK * np.uint8(255)).mask, MASK == 1)
        assert np.array_equal(truth(tmp_path, MASK.astype(np.float32), AFFINE * (1 + 1e-6)).mask, MASK == 1)

    @pytest.mark.parametrize(
        ("label", "affine", "expected"),
        [
            (MASK[:, :, :4], AFFINE, "the label has 20 x 24 x 4 voxels and the image 20 x 24 x 5"),
            (MASK, SHIFTED, "the label lies up to 3 mm from the image"),
            (MASK * np.uint8(2), AFFINE, "than 0 and 1 (2)"),
            (MASK * np.float32(0.5), AFFINE, "values other than 0 and 1 (0.5)"),
            (np.where(MASK, np.nan, 0).astype(np.float32), AFFINE, "values other than 0 and 1 (nan)"),
            (-MASK.astype(np.int16), AFFINE, "values other than 0 and 1 (-1)"),
            (MASK.astype(np.int16) * 255 + MASK[::-1], AFFINE, "values other than 0 and 1 (1)"),
        ],
    )
    def test_label_that_does_not_fit_is_refused(self, tmp_path, label, affine, expected):
        with pytest.raises(InputError) as caught:
            truth(tmp_path, label, affine)
        assert expected in str(caught.value)

    def test_unreadable_label_is_refused(self, tmp_path):
        save(tmp_path / "images" / "a.nii.gz", np.ones(MASK.shape, np.int16))
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "a.nii.gz").write_text("not an image")
        labels = CaseLabels(find_cases(tmp_path / "images"), tmp_path / "labels")
        with pytest.raises(InputError, match="the label: its NIfTI header is not valid"):
            labels.truth("a", load(tmp_path / "images" / "a.nii.gz"))

    @pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "LA"])
    def test_pictures(self, tmp_path, mode):
        mask = MASK[:, :, 1] * np.uint8(255)
        for folder, values in (("images", np.arange(mask.size, dtype=np.uint8).reshape(mask.shape)), ("labels", mask)):
            (tmp_path / folder).mkdir()
            Image.fromarray(values).convert(mode if folder == "labels" else "L").save(tmp_path / folder / "a.png")
        labels = CaseLabels(find_cases(tmp_path / "images"), tmp_path / "labels")
        image = load(tmp_path / "images" / "a.png")
        assert image.shape == (1, 24, 20)  # x first
        assert np.array_equal(labels.truth("a", image).mask, mask.T > 0)

    def test_coloured_label_is_refused(self, tmp_path):
        colours = np.zeros((20, 24, 3), np.uint8)
        colours[2:5, 2:5, 0], colours[9:12, 9:12, 1] = 255, 255
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir()
            Image.fromarray(colours).save(tmp_path / folder / "a.png")
        labels = CaseLabels(find_cases(tmp_path / "images"), tmp_path / "labels")
        with pytest.raises(InputError, match="several colours"):
            labels.truth("a", load(tmp_path / "images" / "a.png"))


class TestCaseLabels:
    def test_image_and_label_in_one_folder(self, tmp_path):
        for case in ("p1", "p2"):
            save(tmp_path / case / "FLAIR.nii.gz", np.ones(MASK.shape, np.int16))
            save(tmp_path / case / "lesion.nii.gz", MASK)
        cases = find_cases(tmp_path, "FLAIR*")
        labels = CaseLabels(cases, tmp_path, "lesion*")
        assert all(labels.truth(case["case"], load(case["image"])).mask.sum() == MASK.sum() for case in cases)

    def test_cases_without_label(self, tmp_path):
        save(tmp_path / "images" / "ill-1.nii.gz", np.ones(MASK.shape, np.int16))
        save(tmp_path / "labels" / "ill-1.nii.gz", MASK)
        cases, image = (
            [{"case": name} for name in ("ill-1", "ill-2", "well-1")],
            load(tmp_path / "images" / "ill-1.nii.gz"),
        )
        labels = CaseLabels(cases, tmp_path / "labels", normal_pattern="well*")
        assert labels.truth("ill-1", image).is_anomalous
        assert labels.truth("ill-2", image) == (None, None)
        is_anomalous, mask = labels.truth("well-1", image)
        assert is_anomalous is False and mask.shape == MASK.shape and not mask.any()
        image_labels = CaseLabels(cases, normal_pattern="well*")
        assert [image_labels.truth(case["case"], image) for case in cases] == [
            (True, None),
            (True, None),
            (False, None),
        ]

    def test_wrong_settings_raise(self, tmp_path):
        cases = [{"case": "sub-1"}]
        with pytest.raises(InputError, match="give label_dir"):
            CaseLabels(cases)
        with pytest.raises(InputError, match="does not exist"):
            CaseLabels(cases, tmp_path / "nowhere")
        save(tmp_path / "sub-1_seg.nii.gz", MASK)
        with pytest.raises(InputError, match="labels are named like 'sub-1_seg', cases like 'sub-1'"):
            CaseLabels(cases, tmp_path)


class TestAddGroundTruthd:
    def test_truth_of_the_case(self, tmp_path):
        expected = truth(tmp_path, MASK)
        transform = AddGroundTruthd(CaseLabels(find_cases(tmp_path / "images"), tmp_path / "labels"))
        data = {"case": "a", "image": load(tmp_path / "images" / "a.nii.gz"), "map": 1}
        result = transform(data)
        assert result["truth"].is_anomalous and np.array_equal(result["truth"].mask, expected.mask)
        assert result["map"] == 1 and "truth" not in data
        assert transform({**data, "case": "b"})["truth"] == (None, None)

    def test_failure_in_a_compose_keeps_its_sentence(self, tmp_path):
        save(tmp_path / "images" / "a.nii.gz", np.ones(MASK.shape, np.int16))
        save(tmp_path / "labels" / "a.nii.gz", MASK * np.uint8(2))
        transform = AddGroundTruthd(CaseLabels(find_cases(tmp_path / "images"), tmp_path / "labels"))
        with pytest.raises(RuntimeError) as caught:
            Compose([transform])({"case": "a", "image": load(tmp_path / "images" / "a.nii.gz")})
        assert "the label has values other than 0 and 1 (2)" in sentence(caught.value, "read", "")
