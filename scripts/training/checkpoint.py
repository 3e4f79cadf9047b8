"""State of a fit after each epoch, from which an interrupted fit resumes."""

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
from .sampler import DistributedBatchSampler
from .trainer import LOG_LIKELIHOOD, VALIDATION

logger = logging.getLogger(__name__)

REMEDY = "fit without --resume"
EPOCH_KEYS = ("epoch", LOG_LIKELIHOOD, VALIDATION, "active_components", "concentration")  # of the history
IMAGES = ("training images", "validation images")


class FitCheckpoint:
    """Write the state of a fit after every epoch, and resume from it on request.

    The order of the batches depends on seed and epoch alone, so a fit that was killed at any moment and resumed gives
    the same model as an uninterrupted one.

    Args:
        network: its mixture is fitted.
        tracker: holds the history and the best epoch so far; attached by this handler.
        output: directory of the state, ``last_epoch.pt``.
        train: training set.
        validation: validation set, which decides the best epoch.
        sampler: batches of the training set.
        init_params: initialisation of the fit, see `MixtureInitializer`.
        resume: whether to resume from the file; without a file the fit starts anew.
    """

    def __init__(
        self,
        network: PatchAnomalyNetwork,
        tracker: BestModelTracker,
        output: FitOutput,
        train: EmbeddingDataset,
        validation: EmbeddingDataset,
        sampler: DistributedBatchSampler,
        init_params: str,
        resume: bool = False,
    ) -> None:
        self.network = network
        self.tracker = tracker
        self.output = output
        self.path = output.directory.path / LAST_EPOCH
        self.datasets = dict(zip(IMAGES, (train, validation), strict=True))
        self.sampler = sampler
        self.init_params = init_params
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer together with the tracker, after the initialiser of the mixture and the validation."""
        self.tracker.attach(engine)  # MONAI Label takes no reference among the handlers of a config
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file, in the first process.

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
        """Resume from the file, or leave everything as it is.

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

    def _check(self, content: Any, expected: dict[str, Any]) -> None:
        """Raise `InputError` unless the content of a file is a state of this fit."""
        parts = content if isinstance(content, dict) else {}
        settings, epoch, tracker = parts.get("fit"), parts.get("epoch"), parts.get("keeper")
        if not isinstance(settings, dict) or not isinstance(tracker, dict) or not all(map(is_plain, settings.values())):
            raise InputError(f"{self.path} is not the state of a fit; {REMEDY}.")
        for name, value in expected.items():
            if settings.get(name) == value:
                continue
            if name in IMAGES:
                raise InputError(
                    f"The fit in {self.path} had other {name}, or they or how they are prepared changed since; give "
                    f"the same or {REMEDY}."
                )
            raise InputError(
                f"The fit in {self.path} had {name}={printable(str(settings.get(name)))}, this one has "
                f"{name}={value}; give the same or {REMEDY}."
            )
        history = tracker.get("history")
        if type(epoch) is not int or epoch < 1 or not _is_history(history, epoch):
            raise InputError(f"{self.path} does not say what its epochs brought; {REMEDY}.")
        for state in (parts.get("mixture"), tracker.get("best")):
            check_tensors(state, self.network.mixture.state_dict(), str(self.path), REMEDY)

    def _settings(self, engine: Any) -> dict[str, Any]:
        """Collect all that a resumed fit must share with the interrupted one."""
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
            "seed": self.sampler.seed,
            "batch_slices": self.sampler.batch_size,
            "number of slices": len(self.sampler.items),
            **{name: data.identity for name, data in self.datasets.items()},
        }


def _is_history(history: Any, n_epochs: int) -> bool:
    """Return whether this is a history of `BestModelTracker`, with finite numbers for every epoch from 1 on."""
    return (
        isinstance(history, list)
        and len(history) == n_epochs
        and all(isinstance(epoch, dict) and set(epoch) >= set(EPOCH_KEYS) for epoch in history)
        and all(type(value) in (int, float) and math.isfinite(value) for epoch in history for value in epoch.values())
        and [epoch["epoch"] for epoch in history] == list(range(1, n_epochs + 1))
    )
