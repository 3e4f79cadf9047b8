"""The state of a fit after each epoch, from which one that was cut off goes on."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from .checkpoint import save
from .errors import InputError
from .handlers import BestMixtureKeeper
from .network import PatchAnomalyNetwork

logger = logging.getLogger(__name__)


class FitCheckpoint:
    """Writes the state of a fit after every epoch, and goes on from it where asked.

    The order of the batches is a function of seed and epoch, so that a fit that was killed at any moment and resumed
    gives the same model as one that was not.

    Args:
        network: its mixture is fitted.
        keeper: knows the best epoch so far; it is attached with this.
        path: the file.
        resume: whether a fit goes on from the file; where there is none, it starts anew.
    """

    def __init__(
        self, network: PatchAnomalyNetwork, keeper: BestMixtureKeeper, path: str | os.PathLike, resume: bool = False
    ) -> None:
        self.network = network
        self.keeper = keeper
        self.path = Path(path)
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handlers that start the mixture and validate it."""
        self.keeper.attach(engine)
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file; the first process does."""
        if idist.get_rank() == 0:
            content = {
                "fit": self._settings(engine),
                "epoch": engine.state.epoch,
                "mixture": self.network.mixture.state_dict(),
                "keeper": self.keeper.state_dict(),
            }
            save(content, self.path)

    def load(self, engine: Engine) -> None:
        """Go on from the file.

        Raises:
            InputError: the file cannot be read, or its fit had other settings or images.
        """
        if not self.resume:
            return
        if not self.path.is_file():
            logger.info(f"there is no {self.path} to resume from: starting anew")
            return
        device = self.network.mixture.means.device
        try:
            content = torch.load(self.path, map_location=device, weights_only=True)
            found, epoch = dict(content["fit"]), int(content["epoch"])
        except Exception as error:
            raise InputError(f"{self.path} cannot be read; fit without --resume. ({error})"[:300]) from error
        own = self._settings(engine)
        for name in own:
            if found.get(name) != own[name]:
                raise InputError(
                    f"The fit in {self.path} had {name}={found.get(name)}, this one has {name}={own[name]}; give the "
                    "same or fit without --resume."
                )
        self.network.mixture.load_state_dict(content["mixture"])
        self.keeper.load_state_dict(content["keeper"])
        engine.state.epoch = epoch
        engine.state.iteration = epoch * (engine.state.epoch_length or 0)
        logger.info(f"going on after epoch {epoch}")
        if self.keeper.has_converged:
            engine.terminate()

    def _settings(self, engine: Any) -> dict[str, Any]:
        """What a fit that goes on must share with the one before."""
        batches: Any = engine.state.dataloader.batch_sampler
        return {
            **self.network.settings(),
            "weights_digest": self.network.encoder.weights_digest,
            "reg_covar": self.network.mixture.reg_covar,
            "step_size": engine.step_size,
            "schedule": engine.schedule,
            "seed": batches.seed,
            "batch_slices": batches.batch_size,
            "number of slices": batches.n_items,
        }
