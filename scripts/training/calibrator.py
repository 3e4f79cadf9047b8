"""Calibration of a fitted network on held-out normal cases, and the file of the model."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import evenly_divisible_all_gather

from ..distributed import gather
from ..errors import InputError, reason
from ..files import PARTIAL
from ..inference.regions import find_regions
from ..models.calibration import normalize_scores
from ..models.checkpoint import save_network
from ..models.detection import DetectionLimits
from ..models.encoder import PATCH_SIZE
from ..models.mixture import SCORE_KINDS
from ..models.network import PatchAnomalyNetwork
from .cross_fit import CrossFit, HeldOut
from .embeddings import CachedEmbeddings
from .geometry import CaseGeometry

logger = logging.getLogger(__name__)

REPORTED_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false regions a case, those of FROC
N_RESAMPLINGS = 200


class ScoredCase(NamedTuple):
    """A held-out normal case.

    Attributes:
        scores: file of its raw scores ``[kinds,s,h*w]``.
        geometry: its geometry.
    """

    scores: Path
    geometry: CaseGeometry


class HeldOutScores:
    """Raw scores of the patches of held-out normal cases, on disk until the object is deleted.

    Args:
        network: its mixture has the score kinds and its encoder the patch grid.
        parts: cases and the mixtures that score them; of several processes each scores some of the cases.
        within: parent of the temporary folder: a `RecordedDirectory`, which clears the files that a killed run left.
    """

    def __init__(
        self, network: PatchAnomalyNetwork, parts: Iterable[HeldOut], within: str | os.PathLike | None = None
    ) -> None:
        self.network = network
        self.kinds = network.mixture.score_kinds
        self._folder = tempfile.TemporaryDirectory(prefix=PARTIAL, dir=within)
        self.cases: list[ScoredCase] = []
        for mixture, embeddings in parts:
            for index in range(idist.get_rank(), embeddings.n_used, idist.get_world_size()):
                path = Path(self._folder.name, f"{len(self.cases)}.npy")
                np.save(path, self._scored(mixture, embeddings.case(index)))
                self.cases.append(ScoredCase(path, embeddings.geometry(index)))

    @torch.no_grad()
    def _scored(self, mixture: Any, embeddings: np.ndarray) -> np.ndarray:
        """Score the embeddings ``[s,h*w,D]`` of a case slice by slice."""
        slices = (torch.from_numpy(np.array(each)).to(mixture.means) for each in embeddings)
        return np.stack(
            [
                np.stack([mixture.anomaly_score(patches, kind).cpu().numpy() for kind in self.kinds])
                for patches in slices
            ],
            axis=1,
        )

    def patches(self, max_patches: int = 4_000_000) -> dict[str, np.ndarray]:
        """Collect the scores of the patches of the foreground, of all processes.

        Args:
            max_patches: number of patches above which only every n-th is taken.

        Returns:
            Raw scores ``[N]`` by kind.
        """
        masks = [case.geometry.patch_foreground(self.network) for case in self.cases]
        n_patches = sum(gather([int(mask.sum()) for mask in masks]))
        step = 1 + n_patches // max_patches
        selected = [np.load(case.scores)[:, mask][:, ::step] for case, mask in zip(self.cases, masks, strict=True)]
        scores = np.concatenate([np.empty((len(self.kinds), 0), np.float32), *selected], axis=1)
        gathered: Any = evenly_divisible_all_gather(torch.from_numpy(scores.T.copy()), concat=True)
        return dict(zip(self.kinds, gathered.numpy().T, strict=True))

    def region_peaks(self, min_region_mm3: float) -> dict[str, list[np.ndarray]]:
        """Find the regions of the maps of all cases, of all processes.

        Args:
            min_region_mm3: volume of the smallest region; in pixels for images.

        Returns:
            By kind the raw peaks of the regions of each case.
        """
        peaks: dict[str, list[np.ndarray]] = {}
        for row, kind in enumerate(self.kinds):
            score_range = self.network.calibration.score_range(SCORE_KINDS.index(kind), self.network.target_fpr)
            median, threshold = (value.cpu() for value in score_range)
            of_cases = []
            for case in self.cases:
                scores = normalize_scores(torch.from_numpy(np.load(case.scores)[row]), median, threshold)
                regions = find_regions(
                    self._map(scores, case.geometry),
                    case.geometry.foreground,
                    case.geometry.min_voxels(min_region_mm3),
                )
                of_cases.append(regions.peaks * float(threshold - median) + float(median))
            peaks[kind] = gather(of_cases)
        return peaks

    def _map(self, scores: torch.Tensor, geometry: CaseGeometry) -> np.ndarray:
        """Make the map ``[S,H,W]`` of calibrated patch scores ``[s,h*w]``, as inference does."""
        anomaly_map = np.zeros(geometry.foreground.shape, np.float32)
        height, width = geometry.foreground.shape[1:]
        grid = [-(-length // PATCH_SIZE) for length in self.network.resized(height, width)]
        for index, patches in zip(geometry.nonempty, scores, strict=True):
            anomaly_map[index] = self.network.to_pixels(patches.view(1, 1, *grid), height, width)[0, 0].numpy()
        return anomaly_map


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
        calibration.fit(scores.patches(), network.target_fpr)
        peaks = scores.region_peaks(self.min_region_mm3)
        kinds = {kind: SCORE_KINDS.index(kind) for kind in peaks}
        calibration.regions.fit(
            peaks,
            {kind: float(calibration.decision_threshold(row, network.target_fpr)) for kind, row in kinds.items()},
        )
        self.report = detection_report(network, peaks[network.score])
        at_default = self.report["peak_limits"]["0.5"]
        logger.info(
            f"detection limits from {self.report['held_out_cases']} held-out normal cases: a peak of "
            f"{at_default['peak']:.2f} leaves 0.5 false regions a case (95 % interval {at_default['low']:.2f} to "
            f"{at_default['high']:.2f})"
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
    samples = [calibrated, *([calibrated[i] for i in draw] for draw in _draws(generator, len(calibrated)))]
    limits = [DetectionLimits(np.empty(len(sample)), np.sort(np.concatenate(sample))[::-1]) for sample in samples]
    rates: dict[str, dict[str, float]] = {}
    for rate in REPORTED_RATES:
        peak, *resampled = [each.peak_limit(rate) for each in limits]
        low, high = np.quantile(resampled, [0.025, 0.975])
        rates[f"{rate:g}"] = {"peak": peak, "low": float(low), "high": float(high)}
    return {
        "held_out_cases": len(peaks),
        "regions_per_case": float(np.mean([len(case) for case in peaks])),
        "peak_limits": rates,
    }


def _draws(generator: np.random.Generator, n_cases: int) -> Iterable[list[int]]:
    for _ in range(N_RESAMPLINGS):
        yield generator.integers(n_cases, size=n_cases).tolist()
