"""Histograms of pixel scores.

A case of any size becomes three histograms. Histograms of several cases are summed, so memory does not grow with the
number of cases.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from skimage.measure import label as connected_components

NORMAL, ANOMALOUS, REGIONS = range(3)


def bin_edges(thresholds: Iterable[float] = (), n_bins: int = 131072, limit: float = 1e4) -> np.ndarray:
    """Compute the lower edges of the bins, whose width grows with the score.

    Args:
        thresholds: additional edges, at which counts are exact.
        n_bins: number of bins, evenly spaced in ``asinh(10 score)``: for calibrated scores 0.00002 wide at 0, 0.0002 at
            the decision threshold, and 0.02 % of the score above it.
        limit: scores below ``-limit`` count in the first bin, scores above ``limit`` in the last.

    Returns:
        ``[B]``, increasing; at most ``n_bins`` and the thresholds.
    """
    end = np.arcsinh(10 * limit)
    spaced = np.sinh(np.linspace(-end, end, n_bins)) / 10
    return np.unique([*spaced, *thresholds])


def coarse_bins(edges: np.ndarray, thresholds: Iterable[float], every: int = 16) -> np.ndarray:
    """Return the indices ``[C]`` for `numpy.add.reduceat` that merge bins, without merging across a threshold."""
    return np.unique([*range(0, len(edges), every), *np.searchsorted(edges, [*thresholds])])


def count_pixels(scores: np.ndarray, label: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Count the pixels of a case in each bin.

    Args:
        scores: map of an image or a volume.
        label: the same shape, true for anomalous pixels.
        edges: lower edges of the bins ``[B]``, see `bin_edges`.

    Returns:
        ``[3,B]``: number of normal pixels, number of anomalous pixels, and the sum over the regions of the label of the
        fraction of the region that falls in the bin. Regions are connected through faces, edges and corners, in 2-D for
        an image and in 3-D for a volume.
    """
    bins = np.searchsorted(edges, scores, side="right").clip(min=1) - 1
    regions = connected_components(label)[label]
    shares = 1 / np.bincount(regions, minlength=1).clip(min=1)[regions]
    return np.stack(
        [
            np.bincount(bins[~label], minlength=len(edges)),
            np.bincount(bins[label], minlength=len(edges)),
            np.bincount(bins[label], weights=shares, minlength=len(edges)),
        ]
    )


def count_regions(label: np.ndarray, mask: np.ndarray) -> dict[str, int]:
    """Count the lesions of a label that a mask misses, and the regions of the mask outside the label.

    Args:
        label: true for anomalous pixels.
        mask: the same shape, true for pixels of the predicted mask.

    Returns:
        ``lesions`` in the label, ``missed_lesions`` that the mask does not touch, ``false_regions`` of the mask that
        do not touch the label.
    """
    lesions, n_lesions = connected_components(label, return_num=True)
    regions, n_regions = connected_components(mask, return_num=True)
    return {
        "lesions": n_lesions,
        "missed_lesions": n_lesions - len(np.unique(lesions[label & mask])),
        "false_regions": n_regions - len(np.unique(regions[label & mask])),
    }
