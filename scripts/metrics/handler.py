"""Evaluation handler: maps of an inference run against labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents

from ..data.labels import CaseLabels
from ..distributed import gather
from ..errors import InputError
from ..files import RecordedDirectory, write_csv
from ..inference.measurements import IMAGE_SCORES, image_score
from ..inference.visualization import foreground_mask
from ..models.network import PatchAnomalyNetwork
from ..models.provenance import NOTE, provenance
from .bootstrap import case_weights, interval
from .functional import binning_errors, case_metrics, curves, pixel_metrics
from .histograms import bin_edges, coarse_bins, count_pixels, count_regions

logger = logging.getLogger(__name__)

REPORTED_FPRS = (0.1, 0.05, 0.01)
NO_LABEL = "there is no label of its name in label_dir, and normal_pattern does not say that it is healthy"


class MapEvaluation:
    """Compare maps with labels during an inference run.

    Writes ``metrics.json``, ``metrics.csv`` (pooled) and ``metrics_per_case.csv`` at the end. Until then it keeps
    sums over cases and one row of numbers per case. Several processes have disjoint cases.

    Args:
        labels: labels of the cases.
        network: network whose calibration gives the thresholds for 10, 5 and 1 % of normal patches.
        directory: directory of the files.
        settings: settings of the run, for ``metrics.json``.
        threshold: threshold of the mask.
        image_score: see `scripts.inference.measurements.image_score`.
        fpr_limit: largest false-positive rate of AUPRO.
        n_resamplings: number of resamplings of the cases for 95 % confidence intervals; 0 for no intervals.
        seed: seed of the resamplings.

    Attributes:
        thresholds: calibrated thresholds, by the suffix of their metrics.
        counts: `count_pixels` summed over the cases ``[3,B]``.
        resampled: the same sums of each resampling, in coarser bins ``[R,3,C]``.
        rows: numbers of each case.
        unlabelled: reason of each missing label, by case.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        labels: CaseLabels,
        network: PatchAnomalyNetwork,
        directory: RecordedDirectory,
        settings: Mapping[str, Any],
        threshold: float = 1.0,
        image_score: str = "top_1_percent_mean",
        fpr_limit: float = 0.3,
        n_resamplings: int = 500,
        seed: int = 0,
    ) -> None:
        if image_score not in IMAGE_SCORES:
            raise InputError(f"image_score must be one of {', '.join(IMAGE_SCORES)}; got {image_score!r}.")
        if not 0 < fpr_limit <= 1:
            raise InputError(f"fpr_limit must be above 0 and at most 1; got {fpr_limit}.")
        if n_resamplings < 0:
            raise InputError(f"n_resamplings must be 0 or more; got {n_resamplings}.")
        self.labels = labels
        self.network = network
        self.directory = directory
        self.settings = dict(settings)
        self.threshold = threshold
        self.image_score = image_score
        self.fpr_limit = fpr_limit
        self.n_resamplings = n_resamplings
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Attach to a `CaseEvaluator`, after the writer; an error in this handler is a failure of the case."""
        for name in ("metrics.json", "metrics.csv", "metrics_per_case.csv"):
            self.directory.check_replaceable(name)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_finished)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Reset the sums, and take the thresholds from the network."""
        self.thresholds = {
            **{f"at_fpr_{rate:g}": patch_threshold(self.network, rate) for rate in REPORTED_FPRS},
            "of_mask": float(self.threshold),
        }
        self.edges = bin_edges(self.thresholds.values())
        self.coarse = coarse_bins(self.edges, self.thresholds.values())
        self.counts = np.zeros((3, len(self.edges)))
        self.resampled = np.zeros((self.n_resamplings, 3, len(self.coarse)))
        self.rows: list[dict[str, Any]] = []
        self.unlabelled: dict[str, str] = {}

    def __call__(self, engine: Engine) -> None:
        """Compare the cases of an iteration with their labels."""
        state: Any = engine.state
        for batch, output in zip(state.batch, state.output, strict=True):
            try:
                batch["compared"] = self.compare(batch["case"], output["image"], output["map"], output["pred"])
            except InputError as error:
                self.unlabelled[batch["case"]] = str(error)
                raise

    def add_finished(self, engine: Engine) -> None:
        """Add the cases of an iteration after their results are written."""
        state: Any = engine.state
        for batch in state.batch or []:
            self.add(*batch["compared"])

    def compare(
        self, case: str, image: MetaTensor, anomaly_map: MetaTensor, mask: MetaTensor
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Compare a case with its label.

        Args:
            case: name of the case.
            image: the scored image ``[C,...]`` in [0,1], in the orientation of the input.
            anomaly_map: calibrated map ``[1,...]`` in the same orientation.
            mask: mask ``[1,...]`` in the same orientation.

        Returns:
            The numbers of the case, and its histograms ``[3,B]`` (see `count_pixels`), zeros without a pixel label.

        Raises:
            InputError: the label cannot be used.
        """
        is_anomalous, label = self.labels.truth(case, image)
        if is_anomalous is None:
            self.unlabelled[case] = NO_LABEL
            logger.warning(f"{case} is not evaluated: {NO_LABEL}")
        scores = anomaly_map[0].cpu().numpy()
        score = image_score(scores, foreground_mask(image.cpu().numpy()), self.image_score)
        counts = np.zeros_like(self.counts)
        regions: dict[str, int | None] = dict.fromkeys(["lesions", "missed_lesions", "false_regions"])
        if label is not None:
            counts = count_pixels(scores, label, self.edges)
            regions.update(count_regions(label, mask[0].cpu().numpy() > 0))
        metrics = pixel_metrics(counts, self.edges, self.thresholds, self.fpr_limit)
        row = {"case": case, "image_score": score, "is_anomalous": is_anomalous, **regions, **_without_nan(metrics)}
        return row, counts

    def add(self, row: dict[str, Any], counts: np.ndarray) -> None:
        """Add a case; see `compare`."""
        self.rows.append(row)
        if counts.any():
            self.counts += counts
            weights = case_weights(row["case"], self.n_resamplings, self.seed)[1:]
            self.resampled += np.multiply.outer(weights, np.add.reduceat(counts, self.coarse, axis=1))

    def merge(self) -> None:
        """Gather the cases of all processes in each process."""
        for name in ("counts", "resampled"):
            total: Any = idist.all_reduce(torch.from_numpy(getattr(self, name)))
            setattr(self, name, total.cpu().numpy())
        self.rows = sorted(gather(self.rows), key=lambda row: row["case"])
        self.unlabelled = dict(gather([*self.unlabelled.items()]))

    def finish(self, engine: Engine) -> None:
        """Write the files in the first process; the others wait."""
        self.merge()
        failed = dict(gather([*getattr(engine, "failed", {}).items()]))
        if idist.get_rank() == 0:
            pooled = self.pooled()
            report = {
                "note": NOTE,
                "pooled": pooled,
                "thresholds": self.thresholds,
                "cases": self.rows,
                "unlabelled": self.unlabelled,
                "failed": failed,
                "curves": curves(self.counts, self.edges),
                **provenance(self.network, self.settings),
            }
            columns = ["metric", "value", "low", "high", "binning_error", "reason"]
            with self.directory.write("metrics.csv") as partial:
                write_csv([{"metric": name, **entry} for name, entry in pooled.items()], columns, partial)
            with self.directory.write("metrics_per_case.csv") as partial:
                write_csv(self.rows, [*self.rows[0]] if self.rows else ["case"], partial)
            self.directory.write_json(report, "metrics.json")
            logger.info(
                "\n".join(["evaluation:", *_table(pooled), f"all of it: {self.directory.path / 'metrics.json'}"])
            )
        idist.barrier()

    def pooled(self) -> dict[str, dict[str, Any]]:
        """Compute each metric over all cases.

        Returns:
            By metric its ``value``, the ends ``low`` and ``high`` of its 95 % interval over cases, ``binning_error``
            (bound of the error of the value) or, if the value is None, the ``reason``.
        """
        weights = np.array([case_weights(row["case"], self.n_resamplings, self.seed) for row in self.rows])
        weights = weights.reshape(len(self.rows), 1 + self.n_resamplings)
        samples = [
            {**pixel_metrics(counts, edges, self.thresholds, self.fpr_limit), **case_metrics(self.rows, column)}
            for counts, edges, column in zip(
                [self.counts, *self.resampled],
                [self.edges, *[self.edges[self.coarse]] * self.n_resamplings],
                weights.T,
                strict=True,
            )
        ]
        errors = binning_errors(self.counts, self.fpr_limit)
        entries: dict[str, dict[str, Any]] = {}
        for name, value in samples[0].items():
            # resamplings of a single case are all equal
            low, high = interval(np.array([sample[name] for sample in samples[1:] if len(self.rows) > 1]))
            entries[name] = _without_nan({"value": value, "low": low, "high": high})
            if math.isnan(value):
                reason = self._why_no_cases() if name.startswith("image") else self._why_no_pixels()
                entries[name] = {"value": None, "low": None, "high": None, "reason": reason}
            elif name in errors:
                entries[name]["binning_error"] = errors[name]
        return entries

    def _why_no_pixels(self) -> str:
        n_normal, n_anomalous, _ = self.counts.sum(1)
        if not n_normal and not n_anomalous:
            return "no case has a label of its pixels"
        if not n_anomalous:
            return "no labelled case has an anomalous pixel"
        return "no labelled case has a normal pixel" if not n_normal else "no pixel reaches the threshold"

    def _why_no_cases(self) -> str:
        known = [row["is_anomalous"] for row in self.rows if row["is_anomalous"] is not None]
        return f"there are {sum(known)} anomalous and {len(known) - sum(known)} normal cases"


def patch_threshold(network: PatchAnomalyNetwork, false_positive_rate: float) -> float:
    """Return the calibrated score that this fraction of held-out normal patches exceeds.

    Raises:
        InputError: the network is an exported file, whose calibration is not known.
    """
    if not hasattr(network, "settings"):
        raise InputError(
            "An exported network does not tell its thresholds; evaluate with model.pt, not configs/exported.json."
        )
    calibration, kind = network.calibration, network.score_index
    return float(calibration(calibration.decision_threshold(kind, false_positive_rate), kind, network.target_fpr))


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _table(pooled: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Format the main metrics as lines of text."""
    lines = []
    for name, entry in pooled.items():
        if name.startswith(("sensitivity", "precision", "false_positive_rate")):
            continue
        if entry["value"] is None:
            lines.append(f"  {name:32} -       {entry['reason']}")
        else:
            between = "" if entry["low"] is None else f"({entry['low']:.4f} to {entry['high']:.4f})"
            lines.append(f"  {name:32} {entry['value']:.4f}  {between}")
    return lines
