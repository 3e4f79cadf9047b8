"""What the scores of normal patches look like, and the decision threshold that follows."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from .mixture import SCORE_KINDS

# False-positive rates whose quantile is stored for every score kind; others in between are interpolated.
CALIBRATION_FPRS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


class ScoreCalibration(nn.Module):
    """Maps raw patch scores to units of the decision threshold: 0 is a typical normal patch, 1 the limit.

    Upper quantiles of the scores of held-out normal patches are buffers, for every score kind, so that another kind or
    another target false-positive rate needs no new fit.

    Attributes:
        rates: false-positive rates ``[L]``, falling; the target of the calibration is among them.
        quantiles: ``(1 - rate)`` quantiles ``[kinds, L]`` of raw scores, NaN where not calibrated.
    """

    rates: torch.Tensor
    quantiles: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        n_rates = len(CALIBRATION_FPRS) + 1
        self.register_buffer("rates", torch.full((n_rates,), math.nan))
        self.register_buffer("quantiles", torch.full((len(SCORE_KINDS), n_rates), math.nan))

    def fit(self, scores: Mapping[str, np.ndarray], target_fpr: float) -> None:
        """Take the quantiles of normal scores.

        Args:
            scores: raw scores ``[N]`` of held-out normal patches by kind.
            target_fpr: the share of normal patches that may lie beyond the limit.

        Raises:
            InputError: no patches, a target out of range, or scores of which the limit is not above the median.
        """
        check_target_fpr(target_fpr)
        rates = np.sort([*CALIBRATION_FPRS, target_fpr])[::-1].copy()
        quantiles = torch.full_like(self.quantiles, math.nan)
        for kind, values in scores.items():
            if not len(values):
                raise InputError("Calibration needs patches of held-out normal images; got none.")
            of_kind = np.quantile(np.asarray(values, dtype=np.float64), 1 - rates)
            median, limit = of_kind[0], of_kind[rates == target_fpr][0]
            if not limit > median:
                raise InputError(
                    f"The {kind} scores of the held-out normal patches have median {median:.6g} and limit {limit:.6g}; "
                    "the limit must be higher, so give validation images with some variation or a lower target_fpr."
                )
            quantiles[SCORE_KINDS.index(kind)] = torch.from_numpy(of_kind)
        self.rates.copy_(torch.from_numpy(rates))
        self.quantiles.copy_(quantiles)

    def is_fitted(self, kind: int) -> bool:
        """Whether the score kind with this index in ``SCORE_KINDS`` was calibrated."""
        return not bool(self.quantiles[kind].isnan().any())

    def table(self, kind: int) -> dict[str, float]:
        """Raw scores by the false-positive rate of which they are the limit, for a report."""
        rates = [round(rate, 6) for rate in self.rates.tolist()]
        return {f"fpr {rate:g}": score for rate, score in zip(rates, self.quantiles[kind].tolist(), strict=True)}

    def decision_threshold(self, kind: int, target_fpr: float) -> torch.Tensor:
        """The raw score that is the decision threshold.

        Args:
            kind: index in ``SCORE_KINDS``.
            target_fpr: false-positive rate per patch on normal images, between 0.001 and 0.5.

        Returns:
            A scalar: the stored quantile, or between two of them an interpolation in the logarithm of the rate.
        """
        after = int((self.rates > target_fpr * 1.000001).sum())  # first stored rate that is not above the target
        here = self.quantiles[kind, after]
        if after == 0:
            return here
        log_rates = self.rates[after - 1 : after + 1].log()
        fraction = (log_rates[0] - math.log(target_fpr)) / (log_rates[0] - log_rates[1])
        return torch.lerp(self.quantiles[kind, after - 1], here, fraction.clamp(0, 1))

    def score_range(self, kind: int, target_fpr: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The raw scores that are 0 and 1 of the calibrated ones.

        Args:
            kind: index in ``SCORE_KINDS``.
            target_fpr: false-positive rate per patch on normal images, between 0.001 and 0.5.

        Returns:
            Median and limit, scalars.

        Raises:
            RuntimeError: the limit at this rate is not above the median.
        """
        median, limit = self.quantiles[kind, 0], self.decision_threshold(kind, target_fpr)
        if bool(limit <= median):
            raise RuntimeError("The decision threshold is the median of the normal scores: give a lower target_fpr.")
        return median, limit

    def forward(self, raw: torch.Tensor, kind: int, target_fpr: float) -> torch.Tensor:
        """Calibrate scores, see `score_range` and `normalize_scores`.

        Args:
            raw: raw scores of any shape.
            kind: index in ``SCORE_KINDS``.
            target_fpr: false-positive rate per patch on normal images, between 0.001 and 0.5.

        Returns:
            The same shape, without unit.
        """
        median, limit = self.score_range(kind, target_fpr)
        return normalize_scores(raw, median, limit)


def normalize_scores(raw: torch.Tensor, median: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """Raw scores of any shape -> ``(raw - median) / (limit - median)``, see `ScoreCalibration.score_range`."""
    return (raw - median) / (limit - median)


def check_target_fpr(target_fpr: float) -> None:
    """Raise `InputError` unless a target false-positive rate is one for which a limit can be had."""
    if not CALIBRATION_FPRS[-1] <= target_fpr < CALIBRATION_FPRS[0]:
        raise InputError(
            f"target_fpr must be at least {CALIBRATION_FPRS[-1]} and below {CALIBRATION_FPRS[0]}; got {target_fpr}."
        )
