"""Pixels of maps counted in bins of the score.

A case of any size becomes three histograms. Those of several cases are summed, so that memory does not grow with their
number.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from skimage.measure import label as connected_components

NORMAL, ANOMALOUS, REGIONS = range(3)


def bin_edges(thresholds: Iterable[float] = (), n_bins: int = 131072, limit: float = 1e4) -> np.ndarray:
    """Lower edges of the bins: narrow where most scores are, wider the larger the score.

    Args:
        thresholds: become edges too, so that counts at them are exact.
        n_bins: evenly spaced in ``asinh(10 score)``: for scores in units of the decision threshold 0.00002 wide at 0,
            0.0002 at the limit, and 0.02 % of the score beyond.
        limit: scores below ``-limit`` count in the first bin, those above ``limit`` in the last.

    Returns:
        ``[B]``, rising; at most ``n_bins`` and the thresholds.
    """
    end = np.arcsinh(10 * limit)
    spaced = np.sinh(np.linspace(-end, end, n_bins)) / 10
    return np.unique([*spaced, *thresholds])


def coarse_bins(edges: np.ndarray, thresholds: Iterable[float], every: int = 16) -> np.ndarray:
    """Where to cut bins into coarser ones: indices for `numpy.add.reduceat` ``[C]``, the thresholds' among them."""
    return np.unique([*range(0, len(edges), every), *np.searchsorted(edges, [*thresholds])])


def count_pixels(scores: np.ndarray, label: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The histograms of a case.

    Args:
        scores: map of an image or a volume.
        label: the same shape, true where it is anomalous.
        edges: see `bin_edges`, ``[B]``.

    Returns:
        ``[3,B]``: normal pixels, anomalous pixels, and the sum over the regions of the label of the share of each that
        falls in a bin. Regions are connected through faces, edges and corners, in 2-D for an image and in 3-D for a
        volume.
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
    """How many regions of a label a mask missed, and how many of its own are wrong.

    Args:
        label: true where a case is anomalous.
        mask: the same shape, true where it was found to be.

    Returns:
        ``lesions`` in the label, ``missed_lesions`` that the mask does not touch, ``false_regions`` of the mask that do
        not touch the label.
    """
    lesions, n_lesions = connected_components(label, return_num=True)
    found, n_found = connected_components(mask, return_num=True)
    return {
        "lesions": n_lesions,
        "missed_lesions": n_lesions - len(np.unique(lesions[label & mask])),
        "false_regions": n_found - len(np.unique(found[label & mask])),
    }
