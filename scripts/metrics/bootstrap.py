"""Confidence intervals over cases, from resamplings that are made while the cases pass by.

In a bootstrap a case is drawn a number of times that is nearly Poisson distributed with mean 1. Drawn so, case by case,
it needs neither their number nor all of them at once (Oza & Russell, 2001, Online bagging and boosting).
"""

from __future__ import annotations

import numpy as np


def case_weights(case: str, n_resamplings: int, seed: int) -> np.ndarray:
    """How often a case counts.

    Args:
        case: its name; the weights depend on it and the seed alone, so that neither the order of cases nor their share
            among processes matters.
        n_resamplings: R.
        seed: of the draw.

    Returns:
        ``[1 + R]``: once in the set as it is, and so many times in each resampling.
    """
    generator = np.random.default_rng([seed, *case.encode()])
    return np.concatenate([[1], generator.poisson(1, n_resamplings)])


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a metric.

    Args:
        values: of the resamplings ``[R]``; NaN in those that lack what the metric needs, which are left out.
        confidence: share of the resamplings inside.

    Returns:
        Its ends; NaN where no resampling has a value.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
