"""An evaluation: the maps of an inference run against labels."""

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
from ..files import write_csv
from ..inference.measurements import IMAGE_SCORES, image_score
from ..inference.visualization import foreground_mask
from ..models.network import PatchAnomalyNetwork
from ..models.provenance import NOTE, provenance
from ..recorded_directory import RecordedDirectory
from .bootstrap import case_weights, interval
from .functional import binning_errors, case_metrics, curves, pixel_metrics
from .histograms import bin_edges, coarse_bins, count_pixels, count_regions

logger = logging.getLogger(__name__)

REPORTED_FPRS = (0.1, 0.05, 0.01)
NO_LABEL = "there is no label of its name in label_dir, and normal_pattern does not say that it is healthy"


class MapEvaluation:
    """Compares maps with labels while an inference run makes them.

    Leaves ``metrics.json``, ``metrics.csv`` (pooled) and ``metrics_per_case.csv`` at the end. What it keeps meanwhile
    is sums over cases and a row of numbers for each. Of several processes each brings its own cases, no case twice.

    Args:
        labels: what is known of each case.
        network: its calibration gives the thresholds for 10, 5 and 1 % of normal patches.
        directory: where the files go.
        settings: those of the run, for ``metrics.json``.
        threshold: that of the mask.
        image_score: see `scripts.inference.measurements.image_score`.
        fpr_limit: false-positive rate to which AUPRO is integrated.
        n_resamplings: of the cases, for 95 % confidence intervals; 0 for none.
        seed: of the resamplings.

    Attributes:
        thresholds: by the end of their metrics' names, in units of the limit.
        counts: `count_pixels` summed over the cases ``[3,B]``.
        resampled: likewise in each resampling, in coarser bins, ``[R,3,C]``.
        rows: the numbers of each case.
        unlabelled: why nothing is known of a case, by case.

    Raises:
        InputError: an argument out of its range.
    """

    def __init__(
        self,
        labels: CaseLabels,
        network: PatchAnomalyNetwork,
        directory: RecordedDirectory,
        settings: Mapping[str, Any],
        threshold: float = 1.0,
        image_score: str = "top_hundredth",
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
        """Attach to a `CaseEvaluator`, after what writes the case; what fails here is a failure of the case."""
        for name in ("metrics.json", "metrics.csv", "metrics_per_case.csv"):
            self.directory.check_replaceable(name)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_finished)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Forget an earlier run, and take the thresholds from the network, which is fitted by now."""
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
        """Compare the cases of an iteration with what is known of them."""
        state: Any = engine.state
        for batch, output in zip(state.batch, state.output, strict=True):
            try:
                batch["compared"] = self.compare(batch["case"], output["image"], output["map"], output["pred"])
            except InputError as error:
                self.unlabelled[batch["case"]] = str(error)
                raise

    def add_finished(self, engine: Engine) -> None:
        """Add the cases of an iteration, whose results are written by now."""
        state: Any = engine.state
        for batch in state.batch or []:
            self.add(*batch["compared"])

    def compare(
        self, case: str, image: MetaTensor, anomaly_map: MetaTensor, mask: MetaTensor
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Compare a case with its label.

        Args:
            case: its name.
            image: what was scored ``[C,...]`` in [0,1], in the orientation of the input.
            anomaly_map: calibrated map ``[1,...]`` likewise.
            mask: ``[1,...]`` likewise.

        Returns:
            The numbers of the case, and `count_pixels` of it ``[3,B]``, zeros where its pixels are not known.

        Raises:
            InputError: its label cannot be used.
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
        found = pixel_metrics(counts, self.edges, self.thresholds, self.fpr_limit)
        row = {"case": case, "image_score": score, "is_anomalous": is_anomalous, **regions, **_without_nan(found)}
        return row, counts

    def add(self, row: dict[str, Any], counts: np.ndarray) -> None:
        """Add a case; see `compare`."""
        self.rows.append(row)
        if counts.any():
            self.counts += counts
            weights = case_weights(row["case"], self.n_resamplings, self.seed)[1:]
            self.resampled += np.multiply.outer(weights, np.add.reduceat(counts, self.coarse, axis=1))

    def merge(self) -> None:
        """Bring the cases of all processes together, in each of them; nothing where there is one."""
        for name in ("counts", "resampled"):
            total: Any = idist.all_reduce(torch.from_numpy(getattr(self, name)))
            setattr(self, name, total.cpu().numpy())
        self.rows = sorted(gather(self.rows), key=lambda row: row["case"])
        self.unlabelled = dict(gather([*self.unlabelled.items()]))

    def finish(self, engine: Engine) -> None:
        """Write the files; the first process does, and the others wait for it."""
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
        """Of each metric over all cases ``value``, and the ends ``low`` and ``high`` of its 95 % interval over cases.

        ``binning_error`` says by how much at most the value may be off, ``reason`` why it is None.
        """
        weights = np.array([case_weights(row["case"], self.n_resamplings, self.seed) for row in self.rows])
        weights = weights.reshape(len(self.rows), 1 + self.n_resamplings)
        of_each = [
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
        for name, value in of_each[0].items():
            # one case, drawn however often, does not vary
            low, high = interval(np.array([each[name] for each in of_each[1:] if len(self.rows) > 1]))
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
    """The score that this share of held-out normal patches goes beyond, in units of the network's limit.

    Raises:
        InputError: the network is not calibrated, since an exported file scored in its place.
    """
    calibration, kind = network.calibration, network.score_index
    if not calibration.is_fitted(kind):
        raise InputError(
            "An exported network does not tell its limits; evaluate with model.pt, not configs/exported.json."
        )
    return float(calibration(calibration.decision_threshold(kind, false_positive_rate), kind, network.target_fpr))


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _table(pooled: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The metrics that sum the others up, in lines of text."""
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
