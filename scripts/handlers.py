"""What happens around a fit: its start, the choice of the best epoch, calibration, and the file it leaves."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.utils import evenly_divisible_all_gather
from sklearn.cluster import kmeans_plusplus
from torch.utils.data import DataLoader

from .checkpoint import save, save_network
from .embeddings import EmbeddingDataset
from .errors import InputError
from .network import PatchAnomalyNetwork

logger = logging.getLogger(__name__)


class MixtureStarter:
    """Initialises the mixture from patches of the whole training set when a fit starts.

    Args:
        network: its mixture is initialised.
        embeddings: the training set.
        seed: of the draw.
        init_params: how the means are chosen among those patches: ``"random_from_data"``, the paper's, or
            ``"k-means++"``, far from one another.
        n_patches: how many patches are drawn, uniformly; they give the start's covariance.

    Raises:
        InputError: another ``init_params``.
    """

    def __init__(
        self,
        network: PatchAnomalyNetwork,
        embeddings: EmbeddingDataset,
        seed: int,
        init_params: str = "random_from_data",
        n_patches: int = 20000,
    ) -> None:
        if init_params not in ("random_from_data", "k-means++"):
            raise InputError(f"init_params must be 'random_from_data' or 'k-means++'; got {init_params!r}.")
        self.network = network
        self.embeddings = embeddings
        self.seed = seed
        self.init_params = init_params
        self.n_patches = n_patches

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Initialise the mixture."""
        generator = torch.Generator().manual_seed(self.seed)
        mixture = self.network.mixture
        patches = self.embeddings.sample(max(self.n_patches, mixture.n_components), generator)
        means = None
        if self.init_params == "k-means++" and len(patches) >= mixture.n_components:
            centres, _ = kmeans_plusplus(patches.numpy(), mixture.n_components, random_state=self.seed)
            means = torch.from_numpy(centres).to(mixture.means)
        mixture.initialize(patches, means, generator)


class BestMixtureKeeper:
    """Remembers the mixture of the epoch with the best validation log-likelihood, and brings it back at the end.

    Args:
        network: its mixture is kept.
        evaluator: validates after every epoch; its key metric decides.
        patience: epochs without a new best after which the fit ends, at least 1; None to make all epochs.

    Attributes:
        values: the metric of each epoch.
    """

    def __init__(self, network: PatchAnomalyNetwork, evaluator: Evaluator, patience: int | None = None) -> None:
        if patience is not None and patience < 1:
            raise InputError(f"patience must be at least 1 epoch, or null to make all epochs; got {patience}.")
        self.network = network
        self.evaluator = evaluator
        self.patience = patience
        self.values: list[float] = []
        self._best: dict[str, torch.Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that validates."""
        engine.add_event_handler(Events.STARTED, self.forget)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.restore)

    @property
    def best_epoch(self) -> int:
        """The epoch with the highest value, from 1; 0 before the first."""
        return self.values.index(max(self.values)) + 1 if self.values else 0

    @property
    def has_converged(self) -> bool:
        """Whether the last ``patience`` epochs brought no new best."""
        return self.patience is not None and len(self.values) - self.best_epoch >= self.patience

    def forget(self, engine: Engine) -> None:
        """Forget an earlier fit."""
        self.load_state_dict({"values": [], "best": {}})

    def __call__(self, engine: Engine) -> None:
        """Log an epoch, keep its mixture where it is the best so far, and end a fit that has converged."""
        state, mixture = self.evaluator.state, self.network.mixture
        self.values.append(float(state.metrics[state.key_metric_name]))
        logger.info(
            f"epoch {engine.state.epoch}/{engine.state.max_epochs}: validation log-likelihood "
            f"{self.values[-1]:.2f} nats per patch, {mixture.n_active} active components, "
            f"alpha {float(mixture.weight_concentration):.2f}"
        )
        if self.best_epoch == len(self.values):
            self._best = {name: value.clone() for name, value in mixture.state_dict().items()}
        elif self.has_converged:
            logger.info(f"converged: no better epoch for {self.patience} epochs")
            engine.terminate()

    def restore(self, engine: Engine) -> None:
        """Bring the best mixture back."""
        if self._best:
            logger.info(f"keeping epoch {self.best_epoch}, the best on the validation normals")
            self.network.mixture.load_state_dict(self._best)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"values": self.values, "best": self._best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier state."""
        self.values, self._best = list(state["values"]), dict(state["best"])


class FitCheckpoint:
    """Writes the state of a fit after every epoch, and goes on from it where asked.

    The order of the batches is a function of seed and epoch, so that a fit that was killed at any moment and resumed
    gives the same model as one that was not.

    Args:
        network: its mixture is fitted.
        keeper: knows the best epoch so far.
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
        """Attach to a trainer, after the handlers that start the mixture and keep the best one."""
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


class ThresholdCalibrator:
    """Calibrates every score kind on held-out normal patches when a fit is complete.

    Args:
        network: fitted, to be calibrated.
        data_loader: batches of embeddings ``[N,D]`` of held-out normals.
    """

    def __init__(self, network: PatchAnomalyNetwork, data_loader: DataLoader) -> None:
        self.network = network
        self.data_loader = data_loader

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that brings back the best mixture."""
        engine.add_event_handler(Events.COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Calibrate."""
        mixture = self.network.mixture
        device = mixture.means.device
        scores: dict[str, list[torch.Tensor]] = {kind: [] for kind in mixture.score_kinds}
        for batch in self.data_loader:
            embeddings = batch.to(device, torch.float32)
            for kind, values in scores.items():
                values.append(mixture.anomaly_score(embeddings, kind))
        of_all = {
            kind: evenly_divisible_all_gather(torch.cat(values), concat=True).cpu() for kind, values in scores.items()
        }
        self.network.calibration.fit({kind: values.numpy() for kind, values in of_all.items()}, self.network.target_fpr)


class NetworkSaver:
    """Writes the fitted network when a fit is complete.

    Args:
        network: what to write.
        path: the file, see `save_network`.
    """

    def __init__(self, network: PatchAnomalyNetwork, path: str | os.PathLike) -> None:
        self.network = network
        self.path = path

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, as its last handler."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file; the first process does."""
        if idist.get_rank() == 0:
            save_network(self.network, self.path)
            logger.info(f"fitted and calibrated: {self.path}")
