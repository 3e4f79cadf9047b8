"""The operating point of a fitted model: thresholds, and the false alarms that held-out normal cases lead to expect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..metrics.exact_intervals import rate_interval, share_interval
from ..metrics.froc import FALSE_REGION_RATES
from ..models.calibration import ScoreCalibration
from ..models.detection import DetectionLimits
from ..models.fitted_state import FIT
from ..models.mixture import SCORE_KINDS


@dataclass(frozen=True)
class Expected:
    """False alarms at a rate of false regions.

    Attributes:
        false_regions: the rate that is asked for, in regions a case.
        peak: calibrated peak from which a region is detected.
        n_regions: regions of the held-out normal cases that reach it.
        rate: regions a case.
        rate_low: lower end of its 95 % interval.
        rate_high: upper end.
        n_cases: held-out normal cases with such a region.
        share: share of the held-out normal cases.
        share_low: lower end of its 95 % interval.
        share_high: upper end.
    """

    false_regions: float
    peak: float
    n_regions: int
    rate: float
    rate_low: float
    rate_high: float
    n_cases: int
    share: float
    share_low: float
    share_high: float

    @classmethod
    def of(cls, limits: DetectionLimits, false_regions: float) -> Expected:
        """Count the held-out regions and cases that reach the limit of a rate."""
        peak, n = limits.peak_limit(false_regions), limits.n_cases
        n_regions = int((limits.region_peaks >= peak).sum())
        n_cases = int(((limits.case_peaks >= peak) & (limits.case_peaks > 0)).sum())
        rate_low, rate_high = rate_interval(n_regions, n)
        share_low, share_high = share_interval(n_cases, n)
        return cls(
            false_regions,
            peak,
            n_regions,
            n_regions / n,
            rate_low,
            rate_high,
            n_cases,
            n_cases / n,
            share_low,
            share_high,
        )


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds of a model under settings of inference.

    Attributes:
        settings: ``score``, ``target_fpr``, ``false_regions``, ``extent`` and ``case_alpha``.
        median: raw score that is 0 in the maps.
        threshold: raw score that is 1, the decision threshold.
        n_cases: held-out normal cases; 0 for a model without detection limits.
        expected: false alarms at ``false_regions``; None without detection limits.
        table: false alarms at the rates of an FROC.
        lowest_p: lowest p-value that a case can have.
        n_needed: held-out normal cases that it takes to flag a case.
        flagging_peak: calibrated peak above which a case is flagged; None if none can be.
    """

    settings: Mapping[str, Any]
    median: float
    threshold: float
    n_cases: int
    expected: Expected | None
    table: list[Expected]
    lowest_p: float
    n_needed: int
    flagging_peak: float | None

    @classmethod
    def of(cls, calibration: ScoreCalibration, settings: Mapping[str, Any]) -> OperatingPoint:
        """Find the operating point.

        Args:
            calibration: that of the model.
            settings: see the attributes.

        Raises:
            InputError: the model is not calibrated for the score, or not at this ``target_fpr``.
        """
        kind = SCORE_KINDS.index(settings["score"])
        if not calibration.is_fitted(kind):
            raise InputError(f"The model is not calibrated for the score {settings['score']!r}; {FIT}.")
        try:
            median, threshold = map(float, calibration.score_range(kind, settings["target_fpr"]))
        except RuntimeError as error:
            raise InputError(str(error)) from error
        limits = calibration.detection_limits(kind, settings["target_fpr"])
        alpha, rate = settings["case_alpha"], settings["false_regions"]
        n_cases = limits.n_cases if limits else 0
        expected = Expected.of(limits, rate) if limits else None
        return cls(
            settings=dict(settings),
            median=median,
            threshold=threshold,
            n_cases=n_cases,
            expected=expected,
            table=[Expected.of(limits, each) for each in FALSE_REGION_RATES] if limits else [],
            lowest_p=1 / (n_cases + 1),
            n_needed=math.ceil(round(1 / alpha, 6)) - 1,
            flagging_peak=flagging_peak(limits, alpha, expected.peak) if limits and expected else None,
        )


def flagging_peak(limits: DetectionLimits, case_alpha: float, peak: float) -> float | None:
    """Return the calibrated peak above which a case is flagged; None if no case can be.

    Args:
        limits: detection limits of the model.
        case_alpha: highest p-value of a case that is flagged.
        peak: peak from which a region is detected.
    """
    if not limits.can_flag(case_alpha):
        return None
    lowest = limits.p_values(np.nextafter(limits.case_peaks, np.inf)) <= case_alpha
    return max(peak, float(limits.case_peaks[lowest].min())) if lowest.any() else None
