"""Benchmark of the scaling of intensities: the lesion, and the shift that it makes."""

import numpy as np
import pytest

from benchmarks.intensities import columns, measure, with_lesion
from tests.tiny_cases import brain

IMAGE, VOXEL_SIZE = brain(0, (40, 46, 12)).astype(np.float32), np.array([1.0, 1.0, 3.0])


class TestIntensities:
    def test_lesion_has_its_share_and_leaves_the_rest(self):
        changed, untouched = with_lesion(IMAGE, VOXEL_SIZE, 0.1, 1000, np.random.default_rng(0))
        foreground = IMAGE != 0
        assert np.mean(changed[foreground] > 850) == pytest.approx(0.1, abs=0.02)
        assert np.array_equal(changed[untouched], IMAGE[untouched])
        assert np.array_equal(changed != 0, foreground)

    def test_only_scaling_by_the_image_shifts_tissue(self):
        scalings = {"fixed": lambda image: image / 2000, "maximum": lambda image: image / image.max()}
        shifts = measure([(IMAGE, VOXEL_SIZE)], scalings)
        assert all(len(shifts[name]) == len(columns()) for name in scalings)
        assert all(max(column) == 0 for column in shifts["fixed"])
        assert all(min(column) > 0.1 for column in shifts["maximum"][:5])
