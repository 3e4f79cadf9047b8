"""Progress and report of a fit: a progress bar, curves, and a report at the end."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch.utils.tensorboard import SummaryWriter

from ..models.mixture import SCORE_KINDS
from ..models.network import PatchAnomalyNetwork
from ..models.provenance import NOTE, provenance
from .calibrator import ThresholdCalibrator
from .embeddings import EmbeddingDataset
from .handlers import BestModelTracker
from .output import FIT_REPORTS, FitOutput
from .trainer import LOG_LIKELIHOOD, VALIDATION

logger = logging.getLogger(__name__)


class FitProgressBar(ProgressBar):
    """Progress bar of an epoch, with the metrics of the trainer."""

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        super().attach(
            engine, output_transform=lambda _: {k: f"{value:.5g}" for k, value in engine.state.metrics.items()}
        )


class FitReporter:
    """Write ``fit_report.json`` and ``fit_report.png`` when a fit is complete, and figures to TensorBoard meanwhile.

    They name no case.

    Args:
        network: network to report, fitted and calibrated by then.
        tracker: holds the history.
        train: training set.
        validation: validation set, which decides the best epoch and calibrates the network.
        output: directory of the report.
        calibrator: calibrator of the network, for its report.
        settings: settings of the fit that the network does not hold.
        log_dir: directory of TensorBoard's files; None for none.
        interval: number of epochs between two figures in TensorBoard.
    """

    def __init__(
        self,
        network: PatchAnomalyNetwork,
        tracker: BestModelTracker,
        train: EmbeddingDataset,
        validation: EmbeddingDataset,
        output: FitOutput,
        calibrator: ThresholdCalibrator,
        settings: Mapping[str, Any],
        log_dir: str | os.PathLike | None = None,
        interval: int = 10,
    ) -> None:
        self.network = network
        self.tracker = tracker
        self.datasets = {"train": train, "validation": validation}
        self.output = output
        self.calibrator = calibrator
        self.settings = dict(settings)
        self.log_dir = log_dir
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handlers that restore the best mixture and calibrate the network."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.show)
            engine.add_event_handler(Events.COMPLETED, self.show)
            engine.add_event_handler(Events.COMPLETED, self)

    def show(self, engine: Engine) -> None:
        """Add the figure to TensorBoard."""
        if self.log_dir is not None:
            with SummaryWriter(str(self.log_dir)) as writer:
                writer.add_figure("fit", self.figure(), engine.state.epoch)

    def __call__(self, engine: Engine) -> None:
        """Write the report."""
        report, picture = FIT_REPORTS
        with self.output.write(report) as partial:
            partial.write_text(json.dumps(self.report(), indent=4) + "\n")
        with self.output.write(picture) as partial:
            self.figure().savefig(partial, format="png")
        logger.info(f"report of the fit: {self.output.directory.path / picture} and .json")

    def figure(self) -> Figure:
        """Draw the curves of the fit so far, and the weights of the mixture."""
        return fit_figure(self.tracker.history, self.tracker.best_epoch, self._weights())

    def report(self) -> dict[str, Any]:
        """Collect the content of ``fit_report.json``: data, settings, epochs, weights, quantiles of scores."""
        mixture, calibration = self.network.mixture, self.network.calibration
        return {
            "note": NOTE,
            "data": {name: data.counts() for name, data in self.datasets.items()},
            "best_epoch": self.tracker.best_epoch,
            "converged": self.tracker.has_converged,
            "active_components": mixture.n_active,
            "concentration": float(mixture.weight_concentration),
            "degrees_of_freedom": (
                float(mixture.degrees_of_freedom) if mixture.distribution == "student_t" else None  # of a Gaussian
            ),
            "component_weights": self._weights(),
            "score_quantiles": {
                kind: calibration.table(index) for index, kind in enumerate(SCORE_KINDS) if kind in mixture.score_kinds
            },
            "detection": self.calibrator.report,
            "acquisition": self.network.acquisition,
            "epochs": self.tracker.history,
            **provenance(self.network, self.settings),
        }

    def _weights(self) -> list[float]:
        """Return the weights of the active components, largest first."""
        mixture = self.network.mixture
        return mixture.log_weights()[mixture.active()].exp().sort(descending=True).values.tolist()


def fit_figure(history: Sequence[Mapping[str, float]], best_epoch: int, weights: Sequence[float]) -> Figure:
    """Draw a fit.

    Args:
        history: number and metrics of each epoch, see `BestModelTracker`.
        best_epoch: epoch to mark.
        weights: weights of the components, largest first.

    Returns:
        A figure with the log-likelihoods, the number of active components, alpha, and the weights.
    """
    epochs = [epoch["epoch"] for epoch in history]
    figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
    likelihood, components, concentration, bars = figure.subplots(2, 2).flat
    likelihood.plot(epochs, [epoch[LOG_LIKELIHOOD] for epoch in history], label="training, before each step")
    likelihood.plot(epochs, [epoch[VALIDATION] for epoch in history], label="validation")
    likelihood.axvline(best_epoch, color="grey", linestyle=":", label=f"best epoch, {best_epoch}")
    likelihood.set(title="log-likelihood", ylabel="nats per patch")
    likelihood.legend()
    components.plot(epochs, [epoch["active_components"] for epoch in history], color="tab:green")
    components.set(title="components with a weight above 1e-6")
    concentration.plot(epochs, [epoch["concentration"] for epoch in history], color="tab:red")
    concentration.set(title="concentration alpha")
    for axes in (components, concentration):
        axes.margins(y=0.1)
        axes.set_ylim(bottom=0)
    for axes in (likelihood, components, concentration):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bars.bar(range(1, len(weights) + 1), weights, width=1.0, color="tab:purple")
    bars.set(title="component weights", xlabel="component, largest first", yscale="log")
    return figure
