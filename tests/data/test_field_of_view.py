"""Tests of the field of view of volumes."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from scripts.data import RestoreBackgroundd, SetFieldOfViewd, choose_field_of_view
from scripts.data.field_of_view import check_field_of_view
from scripts.errors import InputError


def head(rows=60, columns=50, slices=4, mm=1.0, margins=((10, 20), (5, 15)), background=0.0):
    """Make a volume ``[1,H,W,D]`` with a box of tissue, and margins of background before and after it."""
    (above, below), (left, right) = margins
    volume = np.full((above + rows + below, left + columns + right, slices), background, np.float32)
    inside = np.random.default_rng(0).uniform(0.3, 0.9, (rows, columns, slices))
    volume[above : above + rows, left : left + columns] = inside
    return MetaTensor(torch.from_numpy(volume)[None], affine=torch.diag(torch.tensor([mm, mm, 3 * mm, 1.0]).double()))


def set_field_of_view(image, mm, **arguments):
    return SetFieldOfViewd("image", mm, **arguments)({"image": image})["image"]


class TestSetFieldOfView:
    @pytest.mark.parametrize("mm", [55, 70, 100, 150.4])
    def test_smaller_edge_of_a_slice_is_the_field_of_view(self, mm):
        found = set_field_of_view(head(), mm)
        assert min(found.shape[1:3]) == round(mm) and found.shape[3] == 4

    def test_no_foreground_is_lost(self):
        image = head()
        for mm in (34, 55, 170):
            found = set_field_of_view(image, mm)
            assert (found > 0).sum() == (image > 0).sum() and torch.isclose(found.sum(), image.sum())

    def test_size_of_tissue_in_pixels_does_not_depend_on_margins_or_voxels(self):
        sizes = set()
        for margins, mm in [(((10, 20), (5, 15)), 1), (((0, 0), (0, 0)), 1), (((60, 7), (0, 90)), 1)]:
            found = set_field_of_view(head(margins=margins, mm=mm), 70)
            sizes.add(tuple(found.shape))
        assert len(sizes) == 1
        fine = set_field_of_view(head(120, 100, mm=0.5), 70)
        assert tuple(fine.shape[1:3]) == tuple(2 * side for side in next(iter(sizes))[1:3])

    @pytest.mark.parametrize("background", [0.0, 0.25])
    @pytest.mark.parametrize("mm", [34, 55, 150])
    def test_inverse_puts_everything_back(self, mm, background):
        image, transform = head(background=background), Compose([SetFieldOfViewd("image", mm)])
        case = transform({"image": image})
        case["pred"] = MetaTensor(case["image"].as_subclass(torch.Tensor).clone())
        inverse = Invertd(["pred", "image"], transform, orig_keys="image", nearest_interp=False)
        inverted = RestoreBackgroundd("image")(inverse(case))
        assert torch.equal(inverted["image"].as_subclass(torch.Tensor), image.as_subclass(torch.Tensor))
        is_tissue = image.as_subclass(torch.Tensor) != background
        assert torch.equal(inverted["pred"][is_tissue], image[is_tissue])
        assert background or torch.equal(inverted["pred"].as_subclass(torch.Tensor), image.as_subclass(torch.Tensor))
        for key in ("pred", "image"):
            assert inverted[key].shape == image.shape and torch.equal(inverted[key].affine, image.affine)

    def test_affine_moves_with_the_first_voxel(self):
        image = head()
        found = set_field_of_view(image, 55)
        shift = (found.affine @ torch.tensor([0.0, 0, 0, 1]).double())[:3].int().tolist()
        assert torch.equal(
            found.as_subclass(torch.Tensor),
            image.as_subclass(torch.Tensor)[
                :, shift[0] : shift[0] + found.shape[1], shift[1] : shift[1] + found.shape[2]
            ],
        )

    def test_extension_has_the_value_of_the_background(self):
        found = set_field_of_view(head(margins=((9, 9), (9, 9)), background=0.25), 150)
        assert found.shape[1:3] == (150, 150) and found[0, 0, 0, 0] == 0.25 and found[0, -1, -1, 0] == 0.25

    def test_without_background_nothing_is_cropped(self):
        noise = MetaTensor(torch.rand(1, 60, 50, 4), affine=torch.eye(4))
        assert torch.equal(set_field_of_view(noise, 40).as_subclass(torch.Tensor), noise.as_subclass(torch.Tensor))

    def test_off_and_pictures_change_nothing(self):
        image, picture = head(), MetaTensor(torch.rand(3, 60, 50), affine=torch.eye(4))
        assert torch.equal(set_field_of_view(image, None), image)
        assert torch.equal(set_field_of_view(picture, 20.0), picture)

    def test_images_too_small_to_judge_stay_small(self):
        small = MetaTensor(torch.rand(1, 10, 30, 4), affine=torch.eye(4))
        assert set_field_of_view(small, 40.0).shape == small.shape

    def test_large_voxels_leave_enough_pixels(self):
        assert min(set_field_of_view(head(8, 8, mm=20.0), 120).shape[1:3]) == 14

    def test_edges_of_all_views(self):
        image = head(slices=40)
        assert min(set_field_of_view(image, 130, views=[0, 1, 2]).shape[1:]) == round(130 / 3)
        assert set_field_of_view(image, 130, spatial_dim=0).shape[1] == image.shape[1]

    def test_colours_have_one_box(self):
        grey = head()
        colours = MetaTensor(torch.cat([grey, grey * 0, grey / 2]), affine=grey.affine)
        assert set_field_of_view(colours, 70).shape[1:] == set_field_of_view(grey, 70).shape[1:]

    def test_wrong_voxel_size_is_an_error_and_no_huge_image(self):
        with pytest.raises(InputError, match=r"show 0\.09 mm at most.*slices of 150 mm.*voxel size"):
            set_field_of_view(head(mm=0.001), 150)
        with pytest.raises(InputError, match=r"show 90 mm at most"):
            set_field_of_view(head(), 181)
        with pytest.raises(InputError, match="repair its header"):
            set_field_of_view(head(mm=0.0), 150)
        with pytest.raises(InputError, match=r"foreground is 150 mm wide.*slices of 70 mm"):
            set_field_of_view(head(mm=3.0), 70)
        one_wrong = head()
        one_wrong.affine = torch.diag(torch.tensor([1.0, 0.01, 3.0, 1.0]).double())
        with pytest.raises(InputError, match=r"edge of 7000 voxels of 0\.01 mm"):
            set_field_of_view(one_wrong, 70)

    def test_large_foreground_is_warned_of(self, caplog):
        set_field_of_view(head(mm=1.2), 55)
        assert caplog.messages == []
        set_field_of_view(head(mm=1.3), 55)
        assert len(caplog.messages) == 1 and "foreground 65 mm wide" in caplog.messages[0]


class TestCheck:
    def test_a_case_has_the_field_of_view_of_the_fit(self):
        case = SetFieldOfViewd("image", 70.0)({"image": head()})
        check_field_of_view(case, SimpleNamespace(field_of_view_mm=70.0))
        check_field_of_view(case, SimpleNamespace())  # exported
        check_field_of_view({}, SimpleNamespace(field_of_view_mm=None))
        for other in (case, {"image": head()}):
            with pytest.raises(InputError, match=r"slices of 80 mm.*SetFieldOfViewd"):
                check_field_of_view(other, SimpleNamespace(field_of_view_mm=80.0))


class TestChoice:
    def cases(self, folder, widths, mm=2.0):
        for number, width in enumerate(widths):
            image = head(columns=width, mm=mm)
            nib.save(nib.Nifti1Image(image[0].numpy(), image.affine.numpy()), folder / f"{number:02}.nii")
        return [{"case": file.stem, "image": str(file)} for file in sorted(folder.iterdir())]

    def test_most_normals_fit_into_it(self, tmp_path):
        cases = self.cases(tmp_path, [40] * 4 + [45] * 15 + [58])
        assert choose_field_of_view("auto", cases) == 110  # 1.15 * 90 mm, rounded up

    def test_unreadable_cases_are_left_out(self, tmp_path):
        cases = self.cases(tmp_path, [40, 40])
        (tmp_path / "00.nii").write_bytes(b"nothing")
        assert choose_field_of_view("auto", [*cases, {"case": "x", "error": "no"}]) == 92

    @pytest.mark.parametrize(("mm", "expected"), [(0.3, 14), (2, 92), (0.02, 0.92)])
    def test_small_and_large_anatomies(self, tmp_path, mm, expected):
        assert choose_field_of_view("auto", self.cases(tmp_path, [40], mm)) == expected

    def test_noise_in_the_air_is_warned_of(self, tmp_path, caplog):
        cases = self.cases(tmp_path, [40, 45])
        assert choose_field_of_view("auto", cases) and "background" not in caplog.text
        for case in cases:
            image = nib.load(case["image"])
            noisy = image.get_fdata() + np.random.default_rng(0).integers(0, 3, image.shape)
            nib.save(nib.Nifti1Image(noisy, image.affine), case["image"])
        choose_field_of_view("auto", cases)
        assert caplog.text.count("no background of one value") == 1

    def test_a_number_and_off_are_taken(self):
        assert choose_field_of_view(150.0, []) == 150
        assert choose_field_of_view(None, []) is None
        assert choose_field_of_view("auto", []) is None
