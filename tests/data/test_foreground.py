"""The foreground of an image: tissue, dark lesions included, and no background."""

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes

from scripts.data.foreground import fill_holes, foreground_mask
from tests.tiny_cases import brain


class TestFillHoles:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_equal_to_scipy_slice_by_slice(self, axis):
        mask = np.random.default_rng(axis).random((60, 70, 9)) > 0.55
        expected = np.stack([binary_fill_holes(mask[..., index]) for index in range(9)], -1)
        turned = np.moveaxis(mask, 2, axis)
        np.testing.assert_array_equal(fill_holes(turned), np.moveaxis(expected, 2, axis))

    def test_picture(self):
        mask = np.random.default_rng(3).random((60, 70)) > 0.55
        np.testing.assert_array_equal(fill_holes(mask), binary_fill_holes(mask))

    @pytest.mark.parametrize("value", [False, True])
    def test_uniform_mask_stays(self, value):
        assert (fill_holes(np.full((6, 7, 5), value)) == value).all()


class TestForegroundMask:
    def test_lesion_as_dark_as_the_background_counts(self):
        image = brain(0).astype(np.float32)[None]
        inside = fill_holes(image[0] > 0)
        image[0, 18:23, 20:26, 1:4] = 0
        np.testing.assert_array_equal(foreground_mask(image), inside)
