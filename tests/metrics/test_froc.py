"""FROC curves: agreement with MONAI's, weights, and the rates beyond the curve."""

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from monai.metrics import compute_froc_curve_data, compute_froc_score

from scripts.metrics.froc import FALSE_REGION_RATES, froc_curve, sensitivities_at

peaks = npst.arrays(np.float64, st.integers(1, 30), elements=st.integers(1, 12).map(float))


class TestFrocCurve:
    @given(peaks, peaks, st.integers(1, 20))
    @settings(max_examples=200, deadline=None)
    def test_equals_monai(self, lesion_peaks, false_peaks, n_cases):
        missed = lesion_peaks < 3
        # MONAI leaves out the lowest value, which is that of missed lesions
        hit = np.append(np.where(missed, 0, lesion_peaks), 0)
        rates, found = compute_froc_curve_data(false_peaks, hit, len(lesion_peaks), n_cases)
        result = froc_curve(np.where(missed, np.nan, lesion_peaks), false_peaks, n_cases)
        np.testing.assert_allclose(result, (rates[::-1], found[::-1]), atol=1e-12)
        expected = compute_froc_score(rates, found, FALSE_REGION_RATES)
        assert sensitivities_at(*result).mean() == pytest.approx(expected)

    @given(peaks, peaks, st.integers(0, 2**32 - 1))
    @settings(max_examples=50, deadline=None)
    def test_weights_act_as_repetitions(self, lesion_peaks, false_peaks, seed):
        generator = np.random.default_rng(seed)
        lesion_peaks[generator.random(len(lesion_peaks)) < 0.3] = np.nan
        weights = [generator.integers(0, 4, len(array)) for array in (lesion_peaks, false_peaks)]
        repeated = froc_curve(np.repeat(lesion_peaks, weights[0]), np.repeat(false_peaks, weights[1]), 7)
        weighted = froc_curve(lesion_peaks, false_peaks, 7, *weights)
        np.testing.assert_allclose(sensitivities_at(*weighted), sensitivities_at(*repeated), atol=1e-12)

    def test_by_hand(self):
        rates, found = froc_curve(np.array([9.0, 5.0, np.nan, 2.0]), np.array([7.0, 5.0, 1.0]), 2)
        assert rates.tolist() == [0, 0, 0.5, 1, 1, 1.5] and found.tolist() == [0, 0.25, 0.25, 0.5, 0.75, 0.75]
        assert sensitivities_at(rates, found).tolist() == [0.25, 0.25, 0.25, 0.75, 0.75, 0.75, 0.75]

    def test_no_false_region_and_no_region(self):
        assert sensitivities_at(*froc_curve(np.array([3.0, np.nan]), np.empty(0), 2)).tolist() == [0.5] * 7
        assert sensitivities_at(*froc_curve(np.full(2, np.nan), np.empty(0), 2)).tolist() == [0] * 7

    def test_without_lesions_is_undefined(self):
        rates, found = froc_curve(np.empty(0), np.array([2.0]), 3)
        assert len(rates) == len(found) == 0 and np.isnan(sensitivities_at(rates, found)).all()
        assert len(froc_curve(np.array([2.0]), np.empty(0), 0, np.zeros(1))[0]) == 0
