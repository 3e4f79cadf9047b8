"""Exact confidence intervals of shares and of rates, from counts."""

from __future__ import annotations

from scipy.stats import binomtest, chi2


def share_interval(n_events: int, n_cases: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the interval of a share (Clopper & Pearson, 1934, Biometrika 26).

    Args:
        n_events: cases with the event.
        n_cases: all cases, at least 1; independent of one another.
        confidence: probability with which the interval has the share, at least.

    Returns:
        The ends, in [0,1].
    """
    found = binomtest(n_events, n_cases).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def rate_interval(n_events: int, n_cases: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the interval of a rate of events that come independently (Garwood, 1936, Biometrika 28).

    Args:
        n_events: events in all cases together.
        n_cases: number of cases, at least 1.
        confidence: probability with which the interval has the rate, at least.

    Returns:
        The ends, in events a case.
    """
    tail = (1 - confidence) / 2
    low = chi2.ppf(tail, 2 * n_events) / 2 if n_events else 0.0
    return float(low) / n_cases, float(chi2.ppf(1 - tail, 2 * n_events + 2)) / 2 / n_cases
