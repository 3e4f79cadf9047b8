"""What happens around a fit: its start, the choice of the best epoch, calibration, and the file it leaves."""

from __future__ import annotations

import logging
import os

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from sklearn.cluster import kmeans_plusplus
from torch.utils.data import DataLoader

from .checkpoint import save_network
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
    """Remembers the mixture of the epoch with the best validation metric, and brings it back at the end.

    Args:
        network: its mixture is kept.
        evaluator: validates after every epoch; its key metric decides.
    """

    def __init__(self, network: PatchAnomalyNetwork, evaluator: Evaluator) -> None:
        self.network = network
        self.evaluator = evaluator
        self._best: dict[str, torch.Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that validates."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.restore)

    def __call__(self, engine: Engine) -> None:
        """Log an epoch and keep its mixture where it is the best so far."""
        state, mixture = self.evaluator.state, self.network.mixture
        logger.info(
            f"epoch {engine.state.epoch}/{engine.state.max_epochs}: validation log-likelihood "
            f"{float(state.metrics[state.key_metric_name]):.2f} nats per patch, {mixture.n_active} active components, "
            f"alpha {float(mixture.weight_concentration):.2f}"
        )
        if state.best_metric_epoch == state.epoch:
            self._best = {name: value.clone() for name, value in mixture.state_dict().items()}

    def restore(self, engine: Engine) -> None:
        """Bring the best mixture back."""
        if self._best:
            logger.info(f"keeping epoch {self.evaluator.state.best_metric_epoch}, the best on the validation normals")
            self.network.mixture.load_state_dict(self._best)


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
        scores: dict[str, list[np.ndarray]] = {kind: [] for kind in mixture.score_kinds}
        for batch in self.data_loader:
            embeddings = batch.to(device, torch.float32)
            for kind, values in scores.items():
                values.append(mixture.anomaly_score(embeddings, kind).cpu().numpy())
        self.network.calibration.fit(
            {kind: np.concatenate(values) for kind, values in scores.items()}, self.network.target_fpr
        )


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
        """Write the file."""
        save_network(self.network, self.path)
        logger.info(f"fitted and calibrated: {self.path}")
