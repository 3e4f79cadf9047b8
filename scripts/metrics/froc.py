"""Free-response receiver operating characteristic (FROC): lesions found against false regions per case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FALSE_REGION_RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)  # of LUNA16 (Setio et al., 2017, Med. Image Anal. 42)


def froc_curve(
    lesion_peaks: np.ndarray,
    false_peaks: np.ndarray,
    n_cases: float,
    lesion_weights: np.ndarray | None = None,
    false_weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the FROC curve over all limits of the peak.

    Args:
        lesion_peaks: highest peak of the regions that hit each lesion ``[L]``; NaN if there is none.
        false_peaks: peak of each region that hits no lesion ``[F]``.
        n_cases: number of cases, or the sum of their weights.
        lesion_weights: weight of each lesion ``[L]``; None for 1.
        false_weights: weight of each false region ``[F]``; None for 1.

    Returns:
        False regions per case and share of the lesions that are hit, both ``[P]`` and rising, from the point without
        any region; without points if there are no lesions.
    """
    lesion_weights = np.ones(len(lesion_peaks)) if lesion_weights is None else lesion_weights
    false_weights = np.ones(len(false_peaks)) if false_weights is None else false_weights
    if not lesion_weights.sum():
        return np.empty(0), np.empty(0)
    is_hit = np.isfinite(lesion_peaks)
    peaks = np.concatenate([lesion_peaks[is_hit], false_peaks])
    steps = np.zeros((2, len(peaks)))
    steps[0, is_hit.sum() :] = false_weights
    steps[1, : is_hit.sum()] = lesion_weights[is_hit]
    order = np.argsort(-peaks)
    is_last = np.diff(peaks[order], append=-np.inf) != 0  # regions of the same peak come together
    false, hit = np.pad(np.cumsum(steps[:, order], axis=1)[:, is_last], ((0, 0), (1, 0)))
    return false / n_cases, hit / lesion_weights.sum()


def sensitivities_at(
    rates: np.ndarray, sensitivities: np.ndarray, wanted: Sequence[float] | np.ndarray = FALSE_REGION_RATES
) -> np.ndarray:
    """Read an FROC curve, linearly between its points, and as its last point beyond it; NaN without points.

    Args:
        rates: false regions per case ``[P]``.
        sensitivities: share of the lesions that are hit ``[P]``.
        wanted: false regions per case to read it at.

    Returns:
        One sensitivity for each wanted rate.
    """
    return np.interp(wanted, rates, sensitivities) if len(rates) else np.full(len(wanted), np.nan)
