"""Calibration of anomaly scores on normal patches, and the decision threshold."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from .detection import DetectionLimits, RegionCalibration
from .mixture import SCORE_KINDS

# False-positive rates whose quantiles are stored for every score kind; rates in between are interpolated.
CALIBRATION_FPRS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


class ScoreCalibration(nn.Module):
    """Map raw patch scores to calibrated ones: 0 is a typical normal patch, 1 the decision threshold.

    Upper quantiles of the scores of held-out normal patches and the peaks of their regions are buffers, for every score
    kind, so that another kind or another false-positive rate needs no new fit.

    Attributes:
        rates: false-positive rates ``[L]``, falling; they include the target of the calibration.
        quantiles: ``(1 - rate)`` quantiles ``[kinds, L]`` of raw scores, NaN where not calibrated.
        regions: peaks of the regions of held-out normal cases.
    """

    rates: torch.Tensor
    quantiles: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        n_rates = len(CALIBRATION_FPRS) + 1
        self.register_buffer("rates", torch.full((n_rates,), math.nan))
        self.register_buffer("quantiles", torch.full((len(SCORE_KINDS), n_rates), math.nan))
        self.regions = RegionCalibration()

    def fit(self, scores: Mapping[str, np.ndarray], target_fpr: float) -> None:
        """Compute the quantiles of normal scores.

        Args:
            scores: raw scores ``[N]`` of held-out normal patches by kind.
            target_fpr: share of normal patches that may exceed the decision threshold.

        Raises:
            InputError: no patches, a target out of range, or a decision threshold that is not above the median.
        """
        check_target_fpr(target_fpr)
        rates = np.sort([*CALIBRATION_FPRS, target_fpr])[::-1].copy()
        quantiles = torch.full_like(self.quantiles, math.nan)
        for kind, values in scores.items():
            if not len(values):
                raise InputError("Calibration needs patches of held-out normal images; got none.")
            kind_quantiles = np.quantile(np.asarray(values, dtype=np.float64), 1 - rates)
            median, threshold = kind_quantiles[0], kind_quantiles[rates == target_fpr][0]
            if not threshold > median:
                raise InputError(
                    f"The {kind} scores of the held-out normal patches have median {median:.6g} and threshold "
                    f"{threshold:.6g}; it must be higher, so give validation images with some variation or a lower "
                    "target_fpr."
                )
            quantiles[SCORE_KINDS.index(kind)] = torch.from_numpy(kind_quantiles)
        self.rates.copy_(torch.from_numpy(rates))
        self.quantiles.copy_(quantiles)

    def thresholds(self) -> dict[str, torch.Tensor]:
        """Return the part of the state dict that holds the decision thresholds of patches."""
        return {"rates": self.rates, "quantiles": self.quantiles}

    def is_fitted(self, kind: int) -> bool:
        """Return whether the score kind with this index in ``SCORE_KINDS`` was calibrated."""
        return not bool(self.quantiles[kind].isnan().any())

    def table(self, kind: int) -> dict[str, float]:
        """Return for a report the raw score that is the decision threshold at each false-positive rate."""
        rates = [round(rate, 6) for rate in self.rates.tolist()]
        return {f"fpr {rate:g}": score for rate, score in zip(rates, self.quantiles[kind].tolist(), strict=True)}

    def decision_threshold(self, kind: int, target_fpr: float) -> torch.Tensor:
        """Return the raw score that is the decision threshold.

        Args:
            kind: index in ``SCORE_KINDS``.
            target_fpr: false-positive rate per patch on normal images, between 0.001 and 0.5.

        Returns:
            A scalar: the stored quantile, or an interpolation of two of them in the logarithm of the rate.
        """
        after = int((self.rates > target_fpr * 1.000001).sum())  # first stored rate that is not above the target
        quantile = self.quantiles[kind, after]
        if after == 0:
            return quantile
        log_rates = self.rates[after - 1 : after + 1].log()
        fraction = (log_rates[0] - math.log(target_fpr)) / (log_rates[0] - log_rates[1])
        return torch.lerp(self.quantiles[kind, after - 1], quantile, fraction.clamp(0, 1))

    def score_range(self, kind: int, target_fpr: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the raw scores whose calibrated values are 0 and 1.

        Args:
            kind: index in ``SCORE_KINDS``.
            target_fpr: false-positive rate per patch on normal images, between 0.001 and 0.5.

        Returns:
            Median and decision threshold, scalars.

        Raises:
            RuntimeError: the decision threshold at this rate is not above the median.
        """
        median, threshold = self.quantiles[kind, 0], self.decision_threshold(kind, target_fpr)
        if bool(threshold <= median):
            raise RuntimeError("The decision threshold is the median of the normal scores: give a lower target_fpr.")
        return median, threshold

    def detection_limits(self, kind: int, target_fpr: float) -> DetectionLimits | None:
        """Return the limits of regions and cases as calibrated scores; None if there are none.

        Args:
            kind: index in ``SCORE_KINDS``.
            target_fpr: false-positive rate per patch on normal images, between 0.001 and 0.5.
        """
        median, threshold = self.score_range(kind, target_fpr)
        return self.regions.limits(kind, float(median), float(threshold))

    def forward(self, raw: torch.Tensor, kind: int, target_fpr: float) -> torch.Tensor:
        """Calibrate scores, see `score_range` and `normalize_scores`.

        Args:
            raw: raw scores of any shape.
            kind: index in ``SCORE_KINDS``.
            target_fpr: false-positive rate per patch on normal images, between 0.001 and 0.5.

        Returns:
            Calibrated scores of the same shape, without unit.
        """
        median, threshold = self.score_range(kind, target_fpr)
        return normalize_scores(raw, median, threshold)


def normalize_scores(raw: torch.Tensor, median: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Compute ``(raw - median) / (threshold - median)`` of any shape, see `ScoreCalibration.score_range`."""
    return (raw - median) / (threshold - median)


def check_target_fpr(target_fpr: float) -> None:
    """Raise `InputError` unless a target false-positive rate is within the stored range."""
    if not CALIBRATION_FPRS[-1] <= target_fpr < CALIBRATION_FPRS[0]:
        raise InputError(
            f"target_fpr must be at least {CALIBRATION_FPRS[-1]} and below {CALIBRATION_FPRS[0]}; got {target_fpr}."
        )
