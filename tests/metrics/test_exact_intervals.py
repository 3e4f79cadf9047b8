"""Exact intervals have their closed forms at the ends, and cover the truth at least as often as they promise."""

import math

import pytest
from scipy.stats import binom, poisson

from scripts.metrics.exact_intervals import rate_interval, share_interval


@pytest.mark.parametrize("n", [1, 5, 19, 300])
def test_no_event(n):
    assert share_interval(0, n) == pytest.approx((0, 1 - 0.025 ** (1 / n)))
    assert rate_interval(0, n) == pytest.approx((0, -math.log(0.025) / n))
    assert share_interval(n, n) == pytest.approx((0.025 ** (1 / n), 1))


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.93])
def test_coverage_of_shares(share):
    covered = [k for k in range(41) if share_interval(k, 40)[0] <= share <= share_interval(k, 40)[1]]
    assert binom.pmf(covered, 40, share).sum() >= 0.95


@pytest.mark.parametrize("rate", [0.05, 0.25, 1, 4])
def test_coverage_of_rates(rate):
    covered = [k for k in range(300) if rate_interval(k, 40)[0] <= rate <= rate_interval(k, 40)[1]]
    assert poisson.pmf(covered, 40 * rate).sum() >= 0.95
