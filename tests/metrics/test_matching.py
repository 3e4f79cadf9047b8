"""Regions matched with lesions: hits, false regions, and the panoptic quality of other implementations."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_fp_tp_probs_nd, compute_panoptic_quality
from skimage.measure import label as connected_components

from scripts.inference.regions import Regions, find_regions, outlined
from scripts.metrics.cases import COUNTS, count_metrics
from scripts.metrics.matching import count_mask, match_regions
from tests.oracles import load_oracle


def as_regions(numbers):
    """Make regions of an array of numbers; a lower number has a higher peak."""
    labels = np.searchsorted(np.unique([0, *numbers.ravel()]), numbers)
    sizes = np.bincount(labels.ravel())[1:]
    return Regions(labels, np.arange(len(sizes), 0, -1.0), sizes)


def panoptic_quality(matched):
    return count_metrics(np.array([{"normal_pixels": 1, **matched}.get(name, 0) for name in COUNTS]))[
        "panoptic_quality"
    ]


class TestMatchRegions:
    def test_hits_misses_and_false_regions(self):
        label, scores = np.zeros((20, 20), bool), np.zeros((20, 20))
        label[1:4, 1:4], label[10, 10], label[15:18, 2] = True, True, True
        scores[3:6, 3:6], scores[12, 12], scores[18, 18], scores[0, 19] = 3, 2, 4, 1
        result = match_regions(label, find_regions(scores, None), 2, voxel_size=0.5)
        assert result == {
            **{"lesions": 3, "missed_lesions": 2, "regions": 3, "false_regions": 2, "iou_sum": 0.0},
            **{"lesion_sizes": [4.5, 0.5, 1.5], "lesion_peaks": [3.0, None, None]},
            **{"lesions_detected": [True, False, False], "false_peaks": [4.0, 2.0, 1.0]},
        }
        result = match_regions(np.zeros_like(label), find_regions(scores, None), 2)
        assert (result["lesions"], result["regions"], result["false_regions"]) == (0, 3, 3)
        result = match_regions(label, find_regions(np.zeros_like(scores)), 2)
        assert result["lesion_peaks"] == [None] * 3 and result["missed_lesions"] == 3 and result["false_peaks"] == []

    def test_region_over_two_lesions_hits_both(self):
        label = np.zeros((5, 20), bool)
        label[2, 2:5], label[2, 12:15] = True, True
        scores = np.zeros(label.shape)
        scores[2, 4:13] = 2
        scores[2, 14] = 5
        result = match_regions(label, find_regions(scores), 0)
        assert result["lesion_peaks"] == [2, 5] and result["missed_lesions"] == result["false_regions"] == 0

    def test_only_the_outline_touches(self):
        label = np.zeros((3, 12), bool)
        label[1, 9:] = True
        scores = np.zeros(label.shape)
        scores[1, 1:10] = [4, 4, 4, 3, 2, 1.5, 1.2, 1.1, 1]
        regions = find_regions(scores)
        assert match_regions(label, regions, 1)["lesion_peaks"] == [4]
        assert match_regions(label, outlined(scores, regions, 0.65), 1)["lesion_peaks"] == [None]

    def test_bare_threshold_detects_all(self):
        label = np.zeros((4, 4), bool)
        label[0, 0], label[3, 3] = True, True
        scores = np.full(label.shape, -9.0)
        scores[0, 0] = -2
        result = match_regions(label, find_regions(scores, threshold=-3), -np.inf)
        assert result["lesions_detected"] == [True, False] and result["lesion_peaks"] == [-2, None]

    def test_equals_monai_where_a_region_has_one_voxel(self):
        generator = np.random.default_rng(1)
        for _ in range(20):
            label = generator.random((30, 30)) < 0.1
            numbers = np.zeros((30, 30), int)
            spots = generator.choice(225, 40, replace=False)
            coordinates = np.stack([spots // 15 * 2, spots % 15 * 2], 1)
            numbers[tuple(coordinates.T)] = np.arange(1, 41)
            regions = as_regions(numbers)
            false, hit, n_lesions = compute_fp_tp_probs_nd(
                regions.peaks, coordinates, connected_components(label).astype(int)
            )
            result = match_regions(label, regions, 1)
            assert result["lesions"] == n_lesions
            assert [peak or 0 for peak in result["lesion_peaks"]] == hit.tolist()
            assert sorted(result["false_peaks"]) == sorted(false.tolist())


class TestPanopticQuality:
    def test_equals_panoptica_and_monai(self):
        oracle = load_oracle("instances")
        for index, (lesions, numbers) in enumerate(zip(oracle["references"], oracle["predictions"], strict=True)):
            result = match_regions(lesions > 0, as_regions(numbers), 0)
            true, false, missed = (int(oracle[name][index]) for name in ("true", "false", "missed"))
            assert (result["lesions"], result["regions"]) == (true + missed, true + false)
            assert result["iou_sum"] == pytest.approx(true * oracle["segmentation_quality"][index])
            assert panoptic_quality(result) == pytest.approx(oracle["panoptic_quality"][index])
            tensors = (torch.from_numpy(array.astype(int)) for array in (numbers, lesions))
            assert panoptic_quality(result) == pytest.approx(float(compute_panoptic_quality(*tensors)), abs=1e-5)

    def test_only_detected_regions_count(self):
        lesions, numbers = (load_oracle("instances")[name][0] for name in ("references", "predictions"))
        regions = as_regions(numbers)
        for limit in (1.5, 3.0, 9.0):
            detected = np.where(regions.labels <= (regions.peaks >= limit).sum(), regions.labels, 0)
            expected = compute_panoptic_quality(torch.from_numpy(detected), torch.from_numpy(lesions.astype(int)))
            assert panoptic_quality(match_regions(lesions > 0, regions, limit)) == pytest.approx(
                float(expected), abs=1e-5
            )


class TestCountMask:
    def test_counts(self):
        generator = np.random.default_rng(2)
        label, mask = generator.random((2, 9, 9)) < 0.4
        counts = count_mask(label, mask)
        assert counts["anomalous_pixels"] + counts["normal_pixels"] == label.size
        assert counts["true_pixels"] == (label & mask).sum() and counts["false_pixels"] == (mask & ~label).sum()
