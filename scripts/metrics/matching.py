"""Regions of a map matched with the lesions of a label."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.measure import label as connected_components

from ..inference.regions import Regions

MIN_IOU = 0.5  # above this a region and a lesion are each other's only match (Kirillov et al., 2019)


def count_mask(label: np.ndarray, mask: np.ndarray) -> dict[str, int]:
    """Count the pixels of a label and of a mask.

    Args:
        label: true for anomalous pixels.
        mask: the same shape, true for pixels that are called anomalous.

    Returns:
        ``anomalous_pixels`` and ``normal_pixels`` of the label; ``true_pixels`` and ``false_pixels`` of the mask.
    """
    n_anomalous, n_mask, true = (int(np.count_nonzero(pixels)) for pixels in (label, mask, label & mask))
    return {
        "anomalous_pixels": n_anomalous,
        "normal_pixels": label.size - n_anomalous,
        "true_pixels": true,
        "false_pixels": n_mask - true,
    }


def match_regions(label: np.ndarray, regions: Regions, peak_limit: float, voxel_size: float = 1.0) -> dict[str, Any]:
    """Match the regions of a map with the lesions of a label.

    Lesions are connected through faces, edges and corners. A region hits every lesion of which it has a voxel; it is
    false if it has none of any lesion. For the panoptic quality a region and a lesion match if their intersection over
    union is above 0.5.

    Args:
        label: true for anomalous pixels.
        regions: candidate regions, with labels of the same shape.
        peak_limit: regions whose peak reaches it are detected.
        voxel_size: size of a voxel, in the unit of ``lesion_sizes``.

    Returns:
        Numbers of ``lesions``, ``missed_lesions`` that no detected region hits, detected ``regions``, detected
        ``false_regions``, and ``iou_sum`` of the detected regions that match. For each lesion ``lesion_sizes``,
        ``lesion_peaks`` (the highest peak of the candidates that hit it; None if there is none) and
        ``lesions_detected`` (whether that peak reaches the limit). For the candidates that are false
        ``false_peaks``, falling.
    """
    lesions, n_lesions = connected_components(label, return_num=True)
    sizes = np.bincount(lesions[label], minlength=n_lesions + 1)[1:]
    n_detected = int(np.count_nonzero(regions.peaks >= peak_limit))
    shared = label & (regions.labels > 0)
    n_numbers = len(regions.peaks) + 1
    pairs, overlaps = np.unique(
        lesions[shared].astype(np.int64) * n_numbers + regions.labels[shared], return_counts=True
    )
    lesion, region = pairs // n_numbers - 1, pairs % n_numbers - 1

    peaks = np.full(n_lesions, np.nan)
    hit, first = np.unique(lesion, return_index=True)
    peaks[hit] = regions.peaks[region[first]]  # regions are sorted by their peaks, and pairs by their regions
    is_detected = peaks >= peak_limit
    is_false = np.bincount(region, minlength=len(regions.peaks)) == 0
    ious = overlaps / (sizes[lesion] + regions.sizes[region] - overlaps)
    is_match = (ious > MIN_IOU) & (region < n_detected)
    return {
        "lesions": n_lesions,
        "missed_lesions": int(np.count_nonzero(~is_detected)),
        "regions": n_detected,
        "false_regions": int(np.count_nonzero(is_false[:n_detected])),
        "iou_sum": float(ious[is_match].sum()),
        "lesion_sizes": (voxel_size * sizes).tolist(),
        "lesion_peaks": [None if np.isnan(peak) else float(peak) for peak in peaks],
        "lesions_detected": is_detected.tolist(),
        "false_peaks": regions.peaks[is_false].tolist(),
    }
