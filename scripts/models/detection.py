"""Detection of regions and cases: peaks of the regions of held-out normal cases, and the limits that they set."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .mixture import SCORE_KINDS

DEFAULT_FALSE_REGIONS = 0.25  # as in configs/inference.json
MAX_FALSE_REGIONS = 16.0  # regions a case whose peaks are stored; more make no useful mask


@dataclass(frozen=True)
class DetectionLimits:
    """Peaks of the regions of n held-out normal cases, as calibrated scores.

    Attributes:
        case_peaks: highest peak of each case ``[n]``, falling; 0 for a case without a region.
        region_peaks: the highest peaks of all regions of all cases ``[m]``, falling; up to ``MAX_FALSE_REGIONS`` a
            case.
    """

    case_peaks: np.ndarray
    region_peaks: np.ndarray

    @classmethod
    def of(cls, cases: Sequence[np.ndarray]) -> "DetectionLimits":
        """Take the limits from the calibrated peaks of the regions of each case, at least one case."""
        return cls(_falling([max([0.0, *case]) for case in cases]), _falling(np.concatenate(cases)))

    @property
    def n_cases(self) -> int:
        """Number of held-out normal cases."""
        return len(self.case_peaks)

    def peak_limit(self, false_regions: float) -> float:
        """Return the peak that as many regions of a normal case reach on average.

        Args:
            false_regions: regions a case, up to ``MAX_FALSE_REGIONS``.

        Returns:
            A calibrated score of at least 0, halfway between two peaks; above all of them for a rate that allows none.
        """
        n_allowed = math.floor(false_regions * self.n_cases)
        if n_allowed >= len(self.region_peaks):
            return 0.0
        after = self.region_peaks[n_allowed]
        before = self.region_peaks[n_allowed - 1] if n_allowed else np.inf
        limit = (before + after) / 2 if np.isfinite(before) else after
        return float(limit if limit > after else np.nextafter(after, np.inf))

    def p_values(self, peaks: Any) -> np.ndarray:
        """Compute conformal p-values of peaks.

        ``p = (1 + k) / (n + 1)``, where k of the n held-out normal cases have a peak at least as high. For the highest
        peak of a case that is exchangeable with them, P(p <= alpha) <= alpha (Vovk, Gammerman & Shafer, 2005,
        Algorithmic Learning in a Random World, section 2.2).

        Args:
            peaks: calibrated scores of any shape.

        Returns:
            The same shape, in (0,1].
        """
        n_reaching = self.n_cases - np.searchsorted(self.case_peaks[::-1], peaks, side="left")
        return (1 + n_reaching) / (self.n_cases + 1)

    def can_flag(self, case_alpha: float) -> bool:
        """Return whether there are enough held-out normal cases for a p-value as low as this."""
        return 1 / (self.n_cases + 1) <= case_alpha


class RegionCalibration(nn.Module):
    """Raw peaks of the regions of held-out normal cases, for every score kind; empty if not fitted.

    Attributes:
        case_local_peaks: highest peak of each case ``[kinds,n]``, falling, NaN where not fitted.
        region_local_peaks: highest peaks of all cases ``[kinds,m]``, falling, padded with NaN.
    """

    case_local_peaks: torch.Tensor
    region_local_peaks: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("case_local_peaks", "region_local_peaks"):
            self.register_buffer(name, torch.empty(len(SCORE_KINDS), 0))

    def fit(self, peaks: Mapping[str, Sequence[np.ndarray]], medians: Mapping[str, float]) -> None:
        """Store peaks.

        Args:
            peaks: by score kind, for each held-out normal case the raw peaks of its regions.
            medians: by score kind the raw score that is 0, which stands for a case without a region.
        """
        n_cases = len(next(iter(peaks.values())))
        n_kept = math.ceil(MAX_FALSE_REGIONS * n_cases)
        rows: dict[str, list[np.ndarray]] = {"case_local_peaks": [], "region_local_peaks": []}
        for kind in SCORE_KINDS:
            cases = peaks.get(kind, [])
            rows["case_local_peaks"].append(_falling([max([*case, medians[kind]]) for case in cases]))
            rows["region_local_peaks"].append(_falling([peak for case in cases for peak in case])[:n_kept])
        for name, values in rows.items():
            filled = np.full((len(values), max(map(len, values))), np.nan, np.float32)
            for row, value in zip(filled, values, strict=True):
                row[: len(value)] = value
            setattr(self, name, torch.from_numpy(filled).to(getattr(self, name).device))

    def limits(self, kind: int, median: float, threshold: float) -> DetectionLimits | None:
        """Return the limits of a score kind as calibrated scores.

        Args:
            kind: index in ``SCORE_KINDS``.
            median: raw score that is 0.
            threshold: raw score that is 1.

        Returns:
            The limits; None if there are none.
        """
        calibrated = [
            (values[kind][~values[kind].isnan()].cpu().double().numpy() - median) / (threshold - median)
            for values in (self.case_local_peaks, self.region_local_peaks)
        ]
        return DetectionLimits(*calibrated) if len(calibrated[0]) else None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load buffers of any number of cases, or none, from models of 0.6 and earlier."""
        for name, buffer in list(self.named_buffers()):
            saved = state_dict.get(prefix + name, buffer.new_empty(len(SCORE_KINDS), 0))
            setattr(self, name, saved.detach().to(buffer, copy=True))


def _falling(values: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.sort(np.asarray(values, dtype=float))[::-1]
