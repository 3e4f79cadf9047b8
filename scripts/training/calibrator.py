"""Calibration of a fitted network on held-out normal cases, and the file of the model."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events

from ..errors import InputError, reason
from ..metrics.bootstrap import interval
from ..metrics.froc import FALSE_REGION_RATES
from ..models.checkpoint import save_network
from ..models.detection import DEFAULT_FALSE_REGIONS, DetectionLimits
from ..models.mixture import SCORE_KINDS
from ..models.network import PatchAnomalyNetwork
from .cross_fit import CrossFit, HeldOut
from .embeddings import CachedEmbeddings
from .held_out_scores import HeldOutScores

logger = logging.getLogger(__name__)

N_RESAMPLINGS = 200


class ThresholdCalibrator:
    """Calibrate every score kind on held-out normal cases when a fit is complete.

    Args:
        network: fitted network, to be calibrated.
        embeddings: held-out normal cases.
        cross_fit: where these are few, fits that hold out every normal case in turn; the network then gets a mixture
            fitted on all of them.
        min_region_mm3: volume of the smallest region; in pixels for images.
        within: see `HeldOutScores`.

    Attributes:
        report: number of cases and folds, seconds, and detection limits of the last calibration.
    """

    def __init__(
        self,
        network: PatchAnomalyNetwork,
        embeddings: CachedEmbeddings,
        cross_fit: CrossFit | None = None,
        min_region_mm3: float = 0.0,
        within: str | os.PathLike | None = None,
    ) -> None:
        self.network = network
        self.embeddings = embeddings
        self.cross_fit = cross_fit
        self.min_region_mm3 = min_region_mm3
        self.within = within
        self.report: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that restores the best mixture."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Calibrate."""
        begin = time.perf_counter()
        folds = self.cross_fit if self.cross_fit is not None and self.cross_fit.is_needed else None
        if folds is None:
            self.calibrate(self.scores())
        else:
            scores = HeldOutScores(self.network, folds.held_out(), self.within)
            folds.refit()
            self.calibrate(scores)
        self.report.update(folds=folds.n_folds if folds else 0, seconds=round(time.perf_counter() - begin, 3))

    def scores(self) -> HeldOutScores:
        """Score the held-out cases."""
        return HeldOutScores(self.network, [HeldOut(self.network.mixture, self.embeddings)], self.within)

    def calibrate(self, scores: HeldOutScores) -> None:
        """Calibrate the network on the scores of held-out cases."""
        network, calibration = self.network, self.network.calibration
        calibration.fit(scores.patches, network.target_fpr)
        peaks = scores.region_peaks(self.min_region_mm3)
        score_ranges = {kind: calibration.score_range(SCORE_KINDS.index(kind), network.target_fpr) for kind in peaks}
        calibration.regions.fit(peaks, {kind: float(median) for kind, (median, _) in score_ranges.items()})
        self.report = detection_report(network, peaks[network.score])
        at_default = self.report["peak_limits"][f"{DEFAULT_FALSE_REGIONS:g}"]
        logger.info(
            f"detection limits from {self.report['held_out_cases']} held-out normal cases: a peak of "
            f"{at_default['peak']:.2f} leaves {DEFAULT_FALSE_REGIONS:g} false regions a case (95 % interval "
            f"{at_default['low']:.2f} to {at_default['high']:.2f})"
        )


class CheckpointSaver:
    """Calibrate the fitted network and write it when a fit is complete.

    Args:
        network: network to write.
        path: the file, see `save_network`.
        calibrator: calibrator of the network; attached by this handler.
    """

    def __init__(self, network: PatchAnomalyNetwork, path: str | os.PathLike, calibrator: ThresholdCalibrator) -> None:
        self.network = network
        self.path = Path(path).absolute()
        self.calibrator = calibrator

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer together with the calibrator, after the handler that restores the best mixture."""
        self.calibrator.attach(engine)  # MONAI Label takes no reference among the handlers of a config
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file, in the first process.

        Raises:
            InputError: it cannot be written.
        """
        if idist.get_rank() == 0:
            try:
                save_network(self.network, self.path)
            except (OSError, RuntimeError) as error:  # torch raises the latter on a full disk
                raise InputError(
                    f"The fit is complete, but its model cannot be written to ckpt_path {self.path} ({reason(error)}); "
                    "make room or give another ckpt_path, and run again with --resume True, which repeats no epoch."
                ) from error
            logger.info(f"fitted and calibrated: {self.path}")


def detection_report(network: PatchAnomalyNetwork, peaks: list[np.ndarray]) -> dict[str, Any]:
    """Describe the detection limits of a calibrated network.

    Args:
        network: the network.
        peaks: raw peaks of the regions of each held-out case, under the network's score.

    Returns:
        ``held_out_cases``, ``regions_per_case`` at the decision threshold, and ``peak_limits``: by false regions a case
        the calibrated ``peak`` with the 95 % interval (``low``, ``high``) of resampled cases.
    """
    median, threshold = map(float, network.score_range())
    calibrated = [(case - median) / (threshold - median) for case in peaks]
    generator = np.random.default_rng(0)
    draws = [generator.integers(len(calibrated), size=len(calibrated)) for _ in range(N_RESAMPLINGS)]
    limits = [DetectionLimits.of(calibrated), *(DetectionLimits.of([calibrated[i] for i in draw]) for draw in draws)]
    rates: dict[str, dict[str, float]] = {}
    for rate in FALSE_REGION_RATES:
        peak, *resampled = [each.peak_limit(rate) for each in limits]
        low, high = interval(np.array(resampled))
        rates[f"{rate:g}"] = {"peak": peak, "low": low, "high": high}
    return {
        "held_out_cases": len(peaks),
        "regions_per_case": float(np.mean([len(case) for case in peaks])),
        "peak_limits": rates,
    }
