"""The state of a fit after each epoch, from which one that was cut off goes on."""

from __future__ import annotations

import logging
import math
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from ..errors import InputError, printable, reason_of
from ..models.fitted_state import check_tensors, is_plain
from ..models.network import PatchAnomalyNetwork
from .embeddings import EmbeddingDataset
from .handlers import BestModelTracker
from .output import LAST_EPOCH, FitOutput
from .trainer import LOG_LIKELIHOOD, VALIDATION

logger = logging.getLogger(__name__)

REMEDY = "fit without --resume"
OF_EPOCH = ("epoch", LOG_LIKELIHOOD, VALIDATION, "active_components", "concentration")  # in the history of every epoch
IMAGES = ("training images", "validation images")


class FitCheckpoint:
    """Writes the state of a fit after every epoch, and goes on from it where asked.

    The order of the batches is a function of seed and epoch, so that a fit that was killed at any moment and resumed
    gives the same model as one that was not.

    Args:
        network: its mixture is fitted.
        tracker: knows the best epoch so far; it is attached with this.
        output: where the state goes, as ``last_epoch.pt``.
        train: what is fitted on.
        validation: what the best epoch is chosen on.
        init_params: how the fit starts, see `MixtureInitializer`.
        resume: whether a fit goes on from the file; where there is none, it starts anew.
    """

    def __init__(
        self,
        network: PatchAnomalyNetwork,
        tracker: BestModelTracker,
        output: FitOutput,
        train: EmbeddingDataset,
        validation: EmbeddingDataset,
        init_params: str,
        resume: bool = False,
    ) -> None:
        self.network = network
        self.tracker = tracker
        self.output = output
        self.path = output.directory.path / LAST_EPOCH
        self.datasets = dict(zip(IMAGES, (train, validation), strict=True))
        self.init_params = init_params
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handlers that start the mixture and validate it."""
        self.tracker.attach(engine)
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file; the first process does.

        Raises:
            InputError: it cannot be written.
        """
        if idist.get_rank() == 0:
            content = {
                "fit": self._settings(engine),
                "epoch": engine.state.epoch,
                "mixture": self.network.mixture.state_dict(),
                "keeper": self.tracker.state_dict(),
            }
            self.output.save(content, LAST_EPOCH)

    def load(self, engine: Engine) -> None:
        """Go on from the file, or leave everything as it is.

        Raises:
            InputError: the file cannot be read or was changed, or its fit had other settings or images.
        """
        if not self.resume:
            return
        if not self.path.is_file():
            logger.info(f"there is no {self.path} to resume from: starting anew")
            return
        if not self.output.directory.owns(LAST_EPOCH):
            raise InputError(f"{self.path} was changed since a fit wrote it; {REMEDY}.")
        try:
            content = torch.load(self.path, map_location=self.network.mixture.means.device, weights_only=True)
        except Exception as error:
            raise InputError(f"{self.path} cannot be read ({reason_of(error)}); {REMEDY}.") from error
        self._check(content, self._settings(engine))
        self.network.mixture.load_state_dict(content["mixture"])
        self.tracker.load_state_dict(content["keeper"])
        epoch = content["epoch"]
        engine.state.epoch = epoch
        engine.state.iteration = epoch * (engine.state.epoch_length or 0)
        logger.info(f"going on after epoch {epoch}")
        if self.tracker.has_converged:
            engine.terminate()

    def _check(self, content: Any, own: dict[str, Any]) -> None:
        """Raise `InputError` unless a file's content is the state of this very fit."""
        parts = content if isinstance(content, dict) else {}
        settings, epoch, tracker = parts.get("fit"), parts.get("epoch"), parts.get("keeper")
        if not isinstance(settings, dict) or not isinstance(tracker, dict) or not all(map(is_plain, settings.values())):
            raise InputError(f"{self.path} is not the state of a fit; {REMEDY}.")
        for name in own:
            if settings.get(name) == own[name]:
                continue
            if name in IMAGES:
                raise InputError(
                    f"The fit in {self.path} had other {name}, or they or how they are prepared changed since; give "
                    f"the same or {REMEDY}."
                )
            raise InputError(
                f"The fit in {self.path} had {name}={printable(str(settings.get(name)))}, this one has "
                f"{name}={own[name]}; give the same or {REMEDY}."
            )
        history = tracker.get("history")
        if type(epoch) is not int or epoch < 1 or not _is_history(history, epoch):
            raise InputError(f"{self.path} does not say what its epochs brought; {REMEDY}.")
        for mixture in (parts.get("mixture"), tracker.get("best")):
            check_tensors(mixture, self.network.mixture.state_dict(), str(self.path), REMEDY)

    def _settings(self, engine: Any) -> dict[str, Any]:
        """All that a fit that goes on must share with the one before."""
        batches: Any = engine.state.dataloader.batch_sampler
        mixture = self.network.mixture
        return {
            **self.network.settings(),
            "weights_digest": self.network.encoder.weights_digest,
            "reg_covar": mixture.reg_covar,
            "weight_concentration": mixture.initial_concentration,
            "learn_weight_concentration": mixture.learn_weight_concentration,
            "init_params": self.init_params,
            "step_size": engine.step_size,
            "schedule": engine.schedule,
            "seed": batches.seed,
            "batch_slices": batches.batch_size,
            "number of slices": batches.n_items,
            **{name: data.identity for name, data in self.datasets.items()},
        }


def _is_history(history: Any, n_epochs: int) -> bool:
    """Whether this has finite numbers of every epoch from 1 on, as `BestModelTracker` keeps them."""
    return (
        isinstance(history, list)
        and len(history) == n_epochs
        and all(isinstance(epoch, dict) and set(epoch) >= set(OF_EPOCH) for epoch in history)
        and all(type(value) in (int, float) and math.isfinite(value) for epoch in history for value in epoch.values())
        and [epoch["epoch"] for epoch in history] == list(range(1, n_epochs + 1))
    )
