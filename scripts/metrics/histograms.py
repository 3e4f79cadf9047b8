"""Histograms of pixel scores.

A case of any size becomes four histograms. Histograms of several cases are summed, so memory does not grow with the
number of cases.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from skimage.measure import label as connected_components

NORMAL, ANOMALOUS, REGIONS, NORMAL_FOREGROUND = range(4)


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


def count_pixels(
    scores: np.ndarray, label: np.ndarray, edges: np.ndarray, foreground: np.ndarray | None = None
) -> np.ndarray:
    """Count the pixels of a case in each bin.

    Args:
        scores: map of an image or a volume.
        label: the same shape, true for anomalous pixels.
        edges: lower edges of the bins ``[B]``, see `bin_edges`.
        foreground: the same shape, true where the image is not background; None for everywhere.

    Returns:
        ``[4,B]``: number of normal pixels, number of anomalous pixels, the sum over the regions of the label of the
        fraction of the region that falls in the bin, and number of normal pixels in the foreground. Regions are
        connected through faces, edges and corners, in 2-D for an image and in 3-D for a volume.
    """
    bins = np.searchsorted(edges, scores, side="right").clip(min=1) - 1
    regions = connected_components(label)[label]
    shares = 1 / np.bincount(regions, minlength=1).clip(min=1)[regions]
    return np.stack(
        [
            np.bincount(bins[~label], minlength=len(edges)),
            np.bincount(bins[label], minlength=len(edges)),
            np.bincount(bins[label], weights=shares, minlength=len(edges)),
            np.bincount(bins[~label if foreground is None else ~label & foreground], minlength=len(edges)),
        ]
    )
