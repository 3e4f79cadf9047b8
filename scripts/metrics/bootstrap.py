"""Bootstrap intervals over cases, from resamplings computed case by case.

The number of draws of a case in a bootstrap is approximately Poisson distributed with mean 1. Drawn for each case
separately, it requires neither the number of cases nor all of them at once (Oza & Russell, 2001, Online bagging and
boosting).
"""

from __future__ import annotations

import numpy as np


def case_weights(case: str, n_resamplings: int, seed: int) -> np.ndarray:
    """Draw the weights of a case.

    Args:
        case: name of the case; the weights depend only on it and the seed, not on the order of the cases or their
            partition among processes.
        n_resamplings: number of resamplings R.
        seed: seed of the draw.

    Returns:
        ``[1 + R]``: 1 for the set itself, and the number of draws in each resampling.
    """
    generator = np.random.default_rng([seed, *case.encode()])
    return np.concatenate([[1], generator.poisson(1, n_resamplings)])


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the percentile interval of a metric.

    Args:
        values: value of each resampling ``[R]``; NaN values, of resamplings without a defined metric, are ignored.
        confidence: fraction of the resamplings inside the interval.

    Returns:
        The ends of the interval; NaN if no resampling has a value.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
