"""Calibrated scores of every kind: 0 is the median of normal patches, 1 the decision threshold."""

import itertools
import math

import numpy as np
import pytest
import torch

from scripts.errors import InputError
from scripts.models.calibration import CALIBRATION_FPRS, ScoreCalibration
from scripts.models.mixture import SCORE_KINDS

COSINE, NEGATIVE_LOG_LIKELIHOOD = SCORE_KINDS.index("cosine"), SCORE_KINDS.index("negative_log_likelihood")


def scores(shift=0.0, n=5003):
    return np.random.default_rng(0).gamma(2.0, size=n).astype(np.float32) + np.float32(shift)


def fitted(values=None, target_fpr=0.01, kind="cosine"):
    calibration = ScoreCalibration()
    calibration.fit({kind: scores() if values is None else values}, target_fpr)
    return calibration


class TestDecisionThreshold:
    @pytest.mark.parametrize("rate", [rate for rate in CALIBRATION_FPRS if rate < 0.5])
    def test_stored_rates_give_quantiles(self, rate):
        limit = float(fitted().decision_threshold(COSINE, rate))
        assert limit == pytest.approx(np.quantile(scores().astype(np.float64), 1 - rate), rel=1e-6)

    @pytest.mark.parametrize("target", [0.03, 0.4999, 0.0011])
    def test_target_gives_a_quantile(self, target):
        limit = float(fitted(target_fpr=target).decision_threshold(COSINE, target))
        assert limit == pytest.approx(np.quantile(scores().astype(np.float64), 1 - target), rel=1e-6)

    def test_other_rates_are_interpolated(self):
        calibration = fitted()
        at_5, at_3, at_2 = (float(calibration.decision_threshold(COSINE, rate)) for rate in (0.05, 0.03, 0.02))
        assert at_5 < at_3 < at_2
        fraction = (math.log(0.05) - math.log(0.03)) / (math.log(0.05) - math.log(0.02))
        assert at_3 == pytest.approx(at_5 + fraction * (at_2 - at_5), rel=1e-5)
        assert at_3 == pytest.approx(np.quantile(scores(), 0.97), rel=0.02)

    def test_threshold_rises_as_the_target_falls(self):
        calibration = fitted(target_fpr=0.03)
        limits = [float(calibration.decision_threshold(COSINE, rate)) for rate in np.geomspace(0.499, 0.001, 200)]
        assert all(after >= before for before, after in itertools.pairwise(limits))
        assert limits[-1] > limits[0]


class TestForward:
    @pytest.mark.parametrize("target", [0.01, 0.03, 0.001, 0.4])
    @pytest.mark.parametrize("shift", [0.0, -1000.0, 500.0])
    def test_median_is_0_and_threshold_1(self, target, shift):
        values = scores(shift)
        calibration = fitted(values, target)
        raw = torch.tensor([np.median(values), np.quantile(values, 1 - target)], dtype=torch.float32)
        torch.testing.assert_close(calibration(raw, COSINE, target), torch.tensor([0.0, 1.0]), rtol=1e-3, atol=1e-3)

    def test_target_share_of_patches_exceeds_1(self):
        values = scores(-20)
        calibrated = fitted(values, 0.03)(torch.from_numpy(values), COSINE, 0.03)
        assert float((calibrated > 1).double().mean()) == pytest.approx(0.03, abs=1e-3)

    def test_linear_with_the_same_shape(self):
        calibration, raw = fitted(), torch.rand(2, 1, 3, 4)
        median, limit = np.median(scores()), np.quantile(scores(), 0.99)
        expected = (raw - float(median)) / float(limit - median)
        torch.testing.assert_close(calibration(raw, COSINE, 0.01), expected)


class TestFit:
    def test_score_kinds_are_independent(self):
        calibration = ScoreCalibration()
        by_kind = {"cosine": scores(), "negative_log_likelihood": scores(-700)}
        calibration.fit(by_kind, 0.01)
        for kind, index in (("cosine", COSINE), ("negative_log_likelihood", NEGATIVE_LOG_LIKELIHOOD)):
            assert calibration.is_fitted(index)
            assert float(calibration.decision_threshold(index, 0.05)) == pytest.approx(
                np.quantile(by_kind[kind], 0.95), rel=1e-5
            )
        assert not calibration.is_fitted(SCORE_KINDS.index("euclidean"))

    def test_not_fitted_at_first(self):
        calibration = ScoreCalibration()
        assert not any(calibration.is_fitted(kind) for kind in range(len(SCORE_KINDS)))
        assert calibration(torch.zeros(3), COSINE, 0.01).isnan().all()

    def test_replaces_an_earlier_fit(self):
        calibration = fitted()
        calibration.fit({"euclidean": scores()}, 0.03)
        assert not calibration.is_fitted(COSINE)
        assert calibration.is_fitted(SCORE_KINDS.index("euclidean"))

    def test_state_dict_holds_the_target(self):
        calibration, other = fitted(target_fpr=0.03), ScoreCalibration()
        other.load_state_dict(calibration.state_dict())
        assert float(other.decision_threshold(COSINE, 0.03)) == float(calibration.decision_threshold(COSINE, 0.03))

    def test_identical_scores_raise(self):
        with pytest.raises(InputError, match=r"euclidean scores .* median 2\.5 and threshold 2\.5"):
            fitted(np.full(100, 2.5, np.float32), kind="euclidean")

    @pytest.mark.parametrize(("share", "target"), [(0.995, 0.01), (0.7, 0.4)])
    def test_threshold_at_the_median_raises(self, share, target):
        values = scores()
        values[: int(share * len(values))] = 0
        with pytest.raises(InputError, match="threshold"):
            fitted(values, target)

    def test_no_scores_raise(self):
        with pytest.raises(InputError, match="got none"):
            fitted(np.zeros(0, np.float32))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_nonfinite_scores_raise(self, bad):
        values = scores()
        values[:2000] = bad
        with pytest.raises(InputError):
            fitted(values)

    def test_failure_keeps_the_earlier_fit(self):
        calibration = fitted()
        before = calibration.quantiles.clone()
        with pytest.raises(InputError):
            calibration.fit({"cosine": scores(3), "euclidean": np.ones(10, np.float32)}, 0.03)
        torch.testing.assert_close(calibration.quantiles, before, equal_nan=True)

    @pytest.mark.parametrize("target", [0.0, 0.0009, 0.5, 1.0, -0.1, math.nan])
    def test_target_out_of_range_raises(self, target):
        with pytest.raises(InputError, match=r"target_fpr must be .* got"):
            fitted(target_fpr=target)


class TestScripting:
    def test_scripted_equals_eager(self):
        calibration, raw = fitted(), torch.rand(50) * 9
        scripted = torch.jit.script(calibration)
        for target in (0.2, 0.03, 0.001):
            torch.testing.assert_close(scripted(raw, COSINE, target), calibration(raw, COSINE, target))
