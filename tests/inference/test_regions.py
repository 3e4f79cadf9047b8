"""Regions of a map: connected components by peak, their outline, and the mask made of them."""

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from skimage.filters import apply_hysteresis_threshold

from scripts.errors import InputError
from scripts.inference.detection import DetectRegionsd
from scripts.inference.measurements import MeasureAnomalyd
from scripts.inference.regions import find_regions, min_voxels_of, outlined, peak_size_of
from scripts.models.detection import DetectionLimits
from tests.tiny_bundle import ROOT


def smooth_map(seed=0, shape=(40, 50, 12)):
    noise = np.random.default_rng(seed).standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, 2)
    return (smooth / smooth.std() * 0.8).astype(np.float32)


class TestFindRegions:
    @pytest.mark.parametrize("shape", [(60, 70), (40, 50, 12)])
    def test_equal_to_scipy(self, shape):
        scores = smooth_map(0, shape)
        regions = find_regions(scores)
        labels, n_regions = ndimage.label(scores >= 1, np.ones([3] * len(shape)))
        assert len(regions.peaks) == n_regions > 5
        expected = ndimage.maximum(scores, labels, range(1, n_regions + 1))
        np.testing.assert_allclose(regions.peaks, np.sort(expected)[::-1])
        for number in (1, n_regions):
            inside = regions.labels == number
            assert scores[inside].max() == regions.peaks[number - 1] and inside.sum() == regions.sizes[number - 1]
            assert len(np.unique(labels[inside])) == 1

    def test_background_and_small_regions_are_left_out(self):
        scores = np.zeros((20, 20), np.float32)
        scores[2:4, 2:4], scores[10, 10], scores[15:19, 15:19] = 2, 3, 4
        foreground = np.ones_like(scores, bool)
        foreground[14:] = False
        assert find_regions(scores, foreground, min_voxels=2).peaks.tolist() == [2]

    def test_map_without_a_region(self):
        regions = find_regions(np.zeros((5, 6, 7)))
        assert (
            not regions.labels.any()
            and not len(regions.peaks)
            and not len(outlined(np.zeros((5, 6, 7)), regions, 0.5).sizes)
        )

    def test_detection_is_a_hysteresis_threshold(self):
        scores = smooth_map(1)
        detected = find_regions(scores).reaching(1.8)
        expected = apply_hysteresis_threshold(scores, np.nextafter(np.float32(1), 0), np.nextafter(np.float32(1.8), 0))
        labels, _ = ndimage.label(scores >= 1, np.ones((3, 3, 3)))  # scikit-image joins through faces only
        np.testing.assert_array_equal(detected.labels > 0, np.isin(labels, labels[expected][labels[expected] > 0]))


class TestLocalMeans:
    @pytest.mark.parametrize(
        ("shape", "size"), [((60, 70), (5, 5)), ((40, 50, 12), (5, 3, 7)), ((1, 60, 70), (1, 9, 9))]
    )
    def test_peak_is_the_highest_mean_of_a_box(self, shape, size):
        scores = smooth_map(0, shape)
        raw, regions = find_regions(scores), find_regions(scores, peak_size=size)
        means = ndimage.uniform_filter(scores, size, mode="nearest")
        assert len(regions.peaks) == len(raw.peaks) and (np.diff(regions.peaks) <= 0).all()
        np.testing.assert_array_equal(regions.labels > 0, raw.labels > 0)
        for number, peak in enumerate(regions.peaks, 1):
            inside = regions.labels == number
            assert peak == pytest.approx(np.clip(means[inside].max(), 0, scores[inside].max()), abs=1e-5)
            assert inside.sum() == regions.sizes[number - 1]

    def test_large_region_is_ahead_of_a_high_spot(self):
        scores = np.zeros((40, 40, 20), np.float32)
        scores[5, 5, 5], scores[20:30, 20:30, 8:18] = 5, 2
        regions = find_regions(scores, peak_size=(9, 9, 9))
        assert regions.sizes.tolist() == [1000, 1] and regions.peaks == pytest.approx([2, 5 / 9**3])

    def test_neighbour_lends_a_region_no_more_than_its_own_score(self):
        scores = np.zeros((30, 30), np.float32)
        scores[5:20, 5:20], scores[12, 21] = 9, 1.5
        regions = find_regions(scores, peak_size=(9, 9))
        assert regions.peaks.tolist() == [9, 1.5]
        assert outlined(scores, regions, 1).sizes.tolist() == [225, 1]  # no detected region is empty

    def test_lonely_spot_in_a_dark_map_is_not_below_a_typical_patch(self):
        scores = np.full((20, 20), -1, np.float32)
        scores[10, 10] = 1
        assert find_regions(scores, peak_size=(9, 9)).peaks.tolist() == [0]

    def test_box_is_a_cubic_centimetre(self):
        assert peak_size_of((100, 100, 100), (1.0, 2.0, 5.0)) == [11, 5, 3]
        assert peak_size_of((100, 100, 100), (12.0, 0.5, 3.4)) == [1, 21, 3]
        assert peak_size_of((8, 100, 100), (1e-6, 1e-6, 1e6)) == [9, 101, 1]

    def test_box_is_a_share_of_an_image(self):
        for n in (1, 2, 7):
            (*_, height, width), n_patches = peak_size_of((1, 224 * n, 300 * n), None), 16
            assert height == width and abs(height - 224 * n / n_patches) <= 1
        assert peak_size_of((160, 200), None) == peak_size_of((1, 160, 200), None)[1:]


class TestOutlined:
    def test_reaches_a_share_of_its_own_peak(self):
        scores = smooth_map(2)
        regions = find_regions(scores)
        narrowed = outlined(scores, regions, 0.65)
        for number, peak in enumerate(regions.peaks, 1):
            expected = (regions.labels == number) & (scores >= max(1, 0.65 * peak))
            np.testing.assert_array_equal(narrowed.labels == number, expected)
            assert narrowed.sizes[number - 1] == expected.sum()

    def test_share_0_changes_nothing(self):
        scores = smooth_map(3)
        regions = find_regions(scores)
        np.testing.assert_array_equal(outlined(scores, regions, 0).labels, regions.labels)


def test_smallest_region_in_voxels():
    assert [min_voxels_of(volume, 4.0) for volume in (0, 3.9, 4, 4.1, 8)] == [1, 1, 1, 2, 2]


LIMITS = DetectionLimits(np.array([3.0, 2.0, 1.5, 0.0]), np.array([3.0, 2.0, 1.5, 1.2, 0.9]))


def detect(scores, limits=LIMITS, **arguments):
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0]))
    grey = np.random.default_rng(0).uniform(0.2, 1, scores.shape).astype(np.float32)
    grey[:3] = 0
    data = {
        name: MetaTensor(torch.from_numpy(array[None]), affine) for name, array in (("image", grey), ("pred", scores))
    }
    data["map"] = data["pred"].clone()
    return MeasureAnomalyd(limits=limits)(DetectRegionsd("pred", limits, **arguments)(data))


class TestDetectRegionsd:
    def test_mask_is_that_of_the_detected_regions(self):
        scores = smooth_map(4)
        done = detect(scores, false_regions=0.5, extent=0.5)
        assert done["peak_limit"] == pytest.approx(1.75)
        foreground = np.ones_like(scores, bool)
        foreground[:3] = False
        regions = find_regions(scores, foreground, peak_size=(5, 5, 3))
        expected = outlined(scores, regions, 0.5).reaching(1.75)
        np.testing.assert_array_equal(done["pred"][0], expected.labels > 0)
        assert done["pred"].dtype == torch.uint8 and isinstance(done["pred"], MetaTensor)
        assert len(done["regions"].peaks) == len(regions.peaks) > done["result"]["n_regions"] == len(expected.peaks) > 0

    def test_bare_threshold_takes_all_voxels(self):
        scores = smooth_map(5)
        expected = scores >= 1.2
        expected[:3] = False
        np.testing.assert_array_equal(detect(scores, threshold=1.2)["pred"][0], expected)

    def test_model_without_limits_is_cut_at_1(self):
        scores = smooth_map(6)
        done = detect(scores, None)
        entry = done["result"]
        assert (done["regions"].labels > 0).sum() == done["pred"].sum() and entry["flagged"] is entry["p_value"] is None

    def test_entries_describe_the_regions(self):
        scores = smooth_map(7)
        done = detect(scores, false_regions=1)
        entry = done["result"]
        assert [region["peak"] for region in entry["regions"]] == sorted(
            (r["peak"] for r in entry["regions"]), reverse=True
        )
        for number, region in enumerate(entry["regions"], 1):
            inside = done["regions"].labels == number
            assert scores[tuple(region["peak_voxel"])] == scores[inside].max() >= region["peak"]
            assert region["n_voxels"] == inside.sum()
            assert region["volume_ml"] == pytest.approx(region["n_voxels"] * 0.012)
        assert (
            entry["p_value"]
            == entry["regions"][0]["p_value"]
            == pytest.approx(LIMITS.p_values(entry["regions"][0]["peak"]))
        )
        assert sum(region["volume_ml"] for region in entry["regions"]) == pytest.approx(entry["anomalous_volume_ml"])

    def test_case_without_a_region_has_p_1(self):
        entry = detect(np.zeros((12, 12, 4), np.float32))["result"]
        assert entry["p_value"] == 1 and entry["n_regions"] == 0 and entry["regions"] == []

    def test_flag_needs_enough_cases(self):
        many = DetectionLimits(np.linspace(2, 1, 19), np.linspace(2, 1, 19))
        scores = np.zeros((12, 12, 4), np.float32)
        assert detect(scores, many)["result"]["flagged"] is False
        scores[6:11, 6:11] = 5
        assert detect(scores, many)["result"]["flagged"] is True
        assert detect(scores)["result"]["flagged"] is None

    def test_defaults_are_those_of_the_config(self):
        config = json.loads((ROOT / "configs" / "inference.json").read_text())
        transform = DetectRegionsd("pred", LIMITS)
        for name in ("false_regions", "extent", "min_region_mm3", "threshold"):
            assert getattr(transform, name) == config[name]

    @pytest.mark.parametrize(
        "arguments",
        [{"false_regions": -1}, {"false_regions": 17}, {"extent": 1.1}, {"extent": "0.5"}, {"min_region_mm3": -1}],
    )
    def test_setting_out_of_range_is_refused(self, arguments):
        with pytest.raises(InputError, match=next(iter(arguments))):
            DetectRegionsd("pred", LIMITS, **arguments)
