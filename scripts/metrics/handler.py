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
from monai.engines.utils import IterationEvents

from ..distributed import gather
from ..errors import InputError
from ..files import write_csv
from ..inference.measurements import IMAGE_SCORES, affine_of, image_score, voxel_mm3
from ..inference.results_directory import ResultsDirectory
from ..models.network import PatchAnomalyNetwork
from ..models.provenance import NOTE, provenance
from .bootstrap import case_weights, interval
from .cases import COUNTS, LISTS, THIRDS, CaseTable, case_metrics, count_metrics
from .functional import binning_errors, curves, pixel_metrics, thinned
from .histograms import ANOMALOUS, NORMAL, NORMAL_FOREGROUND, bin_edges, coarse_bins, count_pixels
from .matching import count_mask, match_regions

logger = logging.getLogger(__name__)

REPORTED_FPRS = (0.1, 0.05, 0.01)
NO_LABEL = "there is no label of its name in label_dir, and normal_pattern does not say that it is healthy"

NOT_DEFINED = {  # reasons if there are lesions
    "precision_of_mask": "all masks are empty",
    "region_precision": "no region is detected",
    **{f"lesion_sensitivity_{third}": "no lesion is of this size" for third in THIRDS},
}


class MapEvaluation:
    """Compare maps, masks and regions with labels during an inference run.

    Writes ``metrics.json``, ``metrics.csv`` (pooled) and ``metrics_per_case.csv`` at the end. Until then it keeps
    sums over cases and one row of numbers per case. Several processes have disjoint cases.

    Args:
        network: network whose calibration gives the thresholds for 10, 5 and 1 % of normal patches.
        directory: directory of the files.
        settings: settings of the run, for ``metrics.json``.
        image_score: see `scripts.inference.measurements.image_score`.
        fpr_limit: largest false-positive rate of AUPRO.
        n_resamplings: number of resamplings of the cases for 95 % confidence intervals; 0 for no intervals.
        seed: seed of the resamplings.

    Attributes:
        thresholds: calibrated thresholds, by the suffix of their metrics.
        counts: `count_pixels` summed over the cases ``[4,B]``.
        resampled: the same sums of each resampling, in coarser bins ``[R,4,C]``.
        rows: numbers of each case.
        unlabelled: reason of each missing label, by case; a case whose label cannot be used has failed before.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        network: PatchAnomalyNetwork,
        directory: ResultsDirectory,
        settings: Mapping[str, Any],
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
        self.network = network
        self.directory = directory
        self.settings = dict(settings)
        self.image_score = image_score
        self.fpr_limit = fpr_limit
        self.n_resamplings = n_resamplings
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Attach to a `CaseEvaluator`, after the writer; an error in this handler is a failure of the case.

        Raises:
            InputError: the run has only a share of the cases.
        """
        if self.directory.share is not None:
            raise InputError("An evaluation takes all cases at once; leave share out, or start several processes.")
        for name in ("metrics.json", "metrics.csv", "metrics_per_case.csv"):
            self.directory.check_replaceable(name)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_finished)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Reset the sums, and take the thresholds from the network."""
        self.thresholds = {f"at_fpr_{rate:g}": patch_threshold(self.network, rate) for rate in REPORTED_FPRS}
        self.edges = bin_edges(self.thresholds.values())
        self.coarse = coarse_bins(self.edges, self.thresholds.values())
        self.counts = np.zeros((4, len(self.edges)))
        self.resampled = np.zeros((self.n_resamplings, 4, len(self.coarse)))
        self.rows: list[dict[str, Any]] = []
        self.unlabelled: dict[str, str] = {}

    def __call__(self, engine: Engine) -> None:
        """Compare the cases of an iteration with their labels."""
        state: Any = engine.state
        for batch, output in zip(state.batch, state.output, strict=True):
            batch["compared"] = self.compare(batch["case"], output)

    def add_finished(self, engine: Engine) -> None:
        """Add the cases of an iteration after their results are written."""
        state: Any = engine.state
        for batch in state.batch or []:
            self.add(*batch["compared"])

    def compare(self, case: str, output: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
        """Compare a case with its label.

        Args:
            case: name of the case.
            output: what postprocessing leaves of it, in the orientation of the input: ``image`` ``[C,...]`` in [0,1],
                calibrated ``map`` ``[1,...]``, mask ``pred`` ``[1,...]``, ``foreground`` ``[...]``, candidate
                ``regions`` (see `Regions`), the ``peak_limit`` of the detected ones, and ``truth`` (see `GroundTruth`).

        Returns:
            The numbers of the case, and its histograms ``[4,B]`` (see `count_pixels`), zeros without a pixel label.
        """
        is_anomalous, label = output["truth"]
        if is_anomalous is None:
            self.unlabelled[case] = NO_LABEL
            logger.warning(f"{case} is not evaluated: {NO_LABEL}")
        image, scores = output["image"], output["map"][0].cpu().numpy()
        foreground = output["foreground"]
        score = image_score(scores, foreground, self.image_score)
        unit, voxel_size = ("mL", voxel_mm3(affine_of(image)) / 1000) if scores.ndim == 3 else ("pixels", 1.0)
        counts = np.zeros_like(self.counts)
        found: dict[str, Any] = dict.fromkeys([*COUNTS, *LISTS])
        if label is not None:
            counts = count_pixels(scores, label, self.edges, foreground)
            found.update(count_mask(label, output["pred"][0].cpu().numpy() > 0))
            found.update(match_regions(label, output["regions"], output["peak_limit"], voxel_size))
        metrics = {
            **count_metrics(np.array([found[name] for name in COUNTS], float)),
            **pixel_metrics(counts, self.edges, self.thresholds, self.fpr_limit),
        }
        about = {"case": case, "image_score": score, "is_anomalous": is_anomalous, "size_unit": unit}
        return {**about, **found, **_without_nan(metrics)}, counts

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
            table = CaseTable.of(self.rows)
            pooled = self.pooled(table)
            froc = [thinned(points).tolist() for points in table.froc(np.ones(len(self.rows)))]
            report = {
                "note": NOTE,
                "pooled": pooled,
                "thresholds": self.thresholds,
                "lesion_size_limits": table.size_limits,
                "cases": self.rows,
                "unlabelled": self.unlabelled,
                "failed": failed,
                "curves": {
                    **curves(self.counts, self.edges),
                    "froc": dict(zip(("false_regions_per_case", "lesion_sensitivity"), froc, strict=True)),
                },
                **provenance(self.network, self.settings),
            }
            columns = ["metric", "value", "low", "high", "binning_error", "reason"]
            with self.directory.write("metrics.csv") as partial:
                write_csv([{"metric": name, **entry} for name, entry in pooled.items()], columns, partial)
            with self.directory.write("metrics_per_case.csv") as partial:
                rows = [{name: value for name, value in row.items() if name not in LISTS} for row in self.rows]
                write_csv(rows, [*rows[0]] if rows else ["case"], partial)
            self.directory.write_json(report, "metrics.json")
            logger.info(
                "\n".join(["evaluation:", *_table(pooled), f"all of it: {self.directory.path / 'metrics.json'}"])
            )
        idist.barrier()

    def pooled(self, table: CaseTable) -> dict[str, dict[str, Any]]:
        """Compute each metric over all cases.

        Args:
            table: numbers of the cases.

        Returns:
            By metric its ``value``, the ends ``low`` and ``high`` of its 95 % interval over cases, ``binning_error``
            (bound of the error of the value) or, if the value is None, the ``reason``.
        """
        weights = np.array([case_weights(row["case"], self.n_resamplings, self.seed) for row in self.rows])
        weights = weights.reshape(len(self.rows), 1 + self.n_resamplings)
        samples = [
            {**case_metrics(table, column), **pixel_metrics(counts, edges, self.thresholds, self.fpr_limit)}
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
                entries[name] = {"value": None, "low": None, "high": None, "reason": self._why_undefined(name)}
            elif name in errors:
                entries[name]["binning_error"] = errors[name]
        return entries

    def _why_undefined(self, metric: str) -> str:
        if metric.startswith("image"):
            return self._why_no_cases()
        n_normal, n_anomalous, n_inside = self.counts[[NORMAL, ANOMALOUS, NORMAL_FOREGROUND]].sum(1)
        if not n_normal and not n_anomalous:
            return "no case has a label of its pixels"
        if not n_anomalous:
            return "no labelled case has an anomalous pixel"
        if metric in NOT_DEFINED:
            return NOT_DEFINED[metric]
        if not n_normal:
            return "no labelled case has a normal pixel"
        return "no normal pixel is in the foreground" if not n_inside else "no pixel reaches the threshold"

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
        if "_at_" in name or name.startswith(("sensitivity", "precision", "false_positive_rate")):
            continue
        if entry["value"] is None:
            lines.append(f"  {name:32} -       {entry['reason']}")
        else:
            between = "" if entry["low"] is None else f"({entry['low']:.4f} to {entry['high']:.4f})"
            lines.append(f"  {name:32} {entry['value']:.4f}  {between}")
    return lines
