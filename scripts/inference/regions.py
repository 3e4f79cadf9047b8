"""Regions of an anomaly map: detected by their peak, outlined relative to it.

The peak of a region is the highest local mean of the map in it, as SUVpeak is in nuclear medicine (Wahl et al., 2009,
J Nucl Med 50 Suppl 1, 122S): a region of a few voxels needs a higher score than a large one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter
from skimage.measure import label

PEAK_MM = 10.0  # side of the cube of local means, 1 cm³
PEAK_SHARE = 1 / 16  # of the shorter edge, for images, which have no scale; two patches at 448 px


class Regions(NamedTuple):
    """Connected components of a map, those with the highest peak first.

    Attributes:
        labels: number of the region of each voxel, from 1; 0 outside. The shape is that of the map.
        peaks: highest local mean of each region ``[R]``, falling; between 0 and its highest score.
        sizes: number of voxels of each region ``[R]``.
    """

    labels: np.ndarray
    peaks: np.ndarray
    sizes: np.ndarray

    def reaching(self, limit: float) -> Regions:
        """Select the regions whose peak reaches a limit."""
        n_detected = int(np.count_nonzero(self.peaks >= limit))
        labels = np.where(self.labels <= n_detected, self.labels, 0)
        return Regions(labels, self.peaks[:n_detected], self.sizes[:n_detected])


def find_regions(
    scores: np.ndarray,
    foreground: np.ndarray | None = None,
    min_voxels: int = 1,
    threshold: float = 1.0,
    peak_size: Sequence[int] | None = None,
) -> Regions:
    """Find the connected components of a map, through faces, edges and corners.

    Args:
        scores: calibrated map of an image or a volume.
        foreground: the same shape, true where a region may be; None for everywhere.
        min_voxels: smaller components are left out.
        threshold: score that the voxels of a region reach.
        peak_size: sides in voxels of the box of local means, see `peak_size_of`; None for the scores themselves.

    Returns:
        The regions.
    """
    reaching = scores >= threshold if foreground is None else (scores >= threshold) & foreground
    labels = np.zeros(scores.shape, np.int32)
    box = _bounding_box(reaching)
    inside = reaching[box]
    components, n_components = label(inside, return_num=True)
    numbers = components[inside]
    sizes = np.bincount(numbers, minlength=n_components + 1)
    peaks = _highest(scores[box][inside], numbers, n_components)
    if peak_size is not None:
        means = _local_means(scores, box, peak_size)[inside]
        peaks = np.clip(_highest(means, numbers, n_components), 0, peaks)
    kept = 1 + np.flatnonzero(sizes[1:] >= min_voxels)
    kept = kept[np.argsort(-peaks[kept], kind="stable")]
    renumbered = np.zeros(n_components + 1, np.int32)
    renumbered[kept] = np.arange(1, len(kept) + 1)
    labels[box] = renumbered[components]
    return Regions(labels, peaks[kept], sizes[kept])


def candidate_regions(
    scores: np.ndarray,
    foreground: np.ndarray,
    min_region_mm3: float,
    voxel_mm3: float,
    spacing: Sequence[float] | np.ndarray | None,
    threshold: float = 1.0,
) -> Regions:
    """Find the regions of the map of a case that a mask chooses from, at inference as in the calibration.

    Args:
        scores: calibrated map of an image or a volume.
        foreground: the same shape, true where a region may be.
        min_region_mm3: volume of the smallest region; in pixels for images.
        voxel_mm3: volume of a voxel; 1 for an image.
        spacing: see `peak_size_of`.
        threshold: score that the voxels of a region reach.

    Returns:
        The regions.
    """
    min_voxels = min_voxels_of(min_region_mm3, voxel_mm3)
    return find_regions(scores, foreground, min_voxels, threshold, peak_size_of(scores.shape, spacing))


def outlined(scores: np.ndarray, regions: Regions, extent: float, threshold: float = 1.0) -> Regions:
    """Restrict each region to the voxels that reach a share of its peak, as a SUV isocontour does.

    Args:
        scores: calibrated map.
        regions: regions of it.
        extent: share of the peak, between 0 and 1.
        threshold: score that the voxels reach whatever the share.

    Returns:
        The same regions with fewer voxels.
    """
    limits = np.concatenate([[np.inf], np.maximum(threshold, extent * regions.peaks)])
    labels = np.where(scores >= limits[regions.labels], regions.labels, 0)
    return regions._replace(labels=labels, sizes=np.bincount(labels.ravel(), minlength=len(limits))[1:])


def peak_size_of(shape: Sequence[int], spacing: Sequence[float] | np.ndarray | None) -> list[int]:
    """Compute the sides in voxels of the box of local means: 1 cm³, or a square in an image.

    Args:
        shape: of the map of an image or a volume.
        spacing: distances of the voxels of a volume in mm along each axis; None for an image ``[H,W]`` or ``[1,H,W]``.

    Returns:
        The nearest odd number for each axis, at most that of the map or one more.
    """
    if spacing is None:
        sides = [1.0] * (len(shape) - 2) + [PEAK_SHARE * min(shape[-2:])] * 2
    else:
        sides = [PEAK_MM / length for length in spacing]
    return [2 * int(min(side, n) // 2) + 1 for side, n in zip(sides, shape, strict=True)]


def min_voxels_of(min_region_mm3: float, voxel_mm3: float) -> int:
    """Return the number of voxels of the smallest region, at least 1; for images both sizes are in pixels."""
    return max(1, math.ceil(min_region_mm3 / voxel_mm3 - 1e-6))


def _highest(values: np.ndarray, numbers: np.ndarray, n_components: int) -> np.ndarray:
    """Return the highest value of each component, by its number; the first, of the background, means nothing."""
    highest = np.full(n_components + 1, -np.inf)
    np.maximum.at(highest, numbers, values)
    return highest


def _local_means(scores: np.ndarray, part: tuple[slice, ...], size: Sequence[int]) -> np.ndarray:
    """Compute the local means of a part of a map, as if they were computed of all of it."""
    wide = tuple(slice(max(0, each.start - n), each.stop + n) for each, n in zip(part, size, strict=True))
    inner = tuple(slice(each.start - w.start, each.stop - w.start) for each, w in zip(part, wide, strict=True))
    means: np.ndarray = uniform_filter(scores[wide], size, mode="nearest")
    return means[inner]


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box that holds all true voxels; an empty one without any."""
    axes = range(mask.ndim)
    projections = [np.flatnonzero(mask.any(tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(line[0], line[-1] + 1) if len(line) else slice(0, 0) for line in projections)
