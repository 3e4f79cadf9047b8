"""Training handlers: initialisation, best-epoch selection, and the acquisition of the training set."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch.utils.data import DataLoader

from ..data.acquisition import fitted_acquisition, read_acquisitions
from ..errors import InputError
from ..models.network import PatchAnomalyNetwork
from .embeddings import CachedEmbeddings, EmbeddingDataset
from .trainer import VALIDATION, settle

logger = logging.getLogger(__name__)

INIT_PARAMS = ("random_from_data", "k-means++")


def initial_means(patches: torch.Tensor, n_components: int, init_params: str, seed: int) -> torch.Tensor | None:
    """Choose the means to start from.

    Args:
        patches: a sample ``[N,D]`` of the whole training set.
        n_components: K.
        init_params: one of ``INIT_PARAMS``.
        seed: seed of the choice.

    Returns:
        Rows ``[K,D]`` of ``patches``, far from one another; None for random ones, and if there are fewer than K.
    """
    if init_params != "k-means++" or len(patches) < n_components:
        return None
    from sklearn.cluster import kmeans_plusplus  # here, as inference does not need it

    return torch.from_numpy(kmeans_plusplus(patches.numpy(), n_components, random_state=seed)[0])


class MixtureInitializer:
    """Initialise the mixture from patches of the whole training set when a fit starts.

    Args:
        network: its mixture is initialised.
        embeddings: training set.
        seed: seed of the draw.
        init_params: choice of the means among those patches: ``"random_from_data"``, the paper's, or ``"k-means++"``,
            far from one another.
        n_patches: number of patches to draw, uniformly; the initial covariance is theirs.

    Raises:
        InputError: another ``init_params``.
    """

    def __init__(
        self,
        network: PatchAnomalyNetwork,
        embeddings: CachedEmbeddings,
        seed: int,
        init_params: str = "random_from_data",
        n_patches: int = 20000,
    ) -> None:
        if init_params not in INIT_PARAMS:
            raise InputError(f"init_params must be one of {', '.join(INIT_PARAMS)}; got {init_params!r}.")
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
        mixture = self.network.mixture
        patches = self.embeddings.sample(max(self.n_patches, mixture.n_components), self.seed)
        means = initial_means(patches, mixture.n_components, self.init_params, self.seed)
        mixture.initialize(patches, means, torch.Generator().manual_seed(self.seed))


class BestModelTracker:
    """Keep the mixture of the epoch with the best validation log-likelihood, and restore it at the end.

    Args:
        network: its mixture is kept.
        evaluator: validates after every epoch; its key metric decides.
        patience: epochs without a new best after which the fit ends, at least 1; None runs all epochs.

    Attributes:
        history: for each epoch its number, the trainer's metrics, and ``validation_log_likelihood``.

    Raises:
        InputError: a ``patience`` below 1.
    """

    def __init__(self, network: PatchAnomalyNetwork, evaluator: Evaluator, patience: int | None = None) -> None:
        if patience is not None and patience < 1:
            raise InputError(f"patience must be at least 1 epoch, or off to make all epochs; got {patience}.")
        self.network = network
        self.evaluator = evaluator
        self.patience = patience
        self.history: list[dict[str, float]] = []
        self._best: dict[str, torch.Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that validates."""
        engine.add_event_handler(Events.STARTED, self.forget)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.restore)

    @property
    def best_epoch(self) -> int:
        """Epoch with the highest validation log-likelihood, from 1; 0 before the first."""
        best = max(self.history, key=lambda epoch: epoch[VALIDATION], default={"epoch": 0})
        return int(best["epoch"])

    @property
    def has_converged(self) -> bool:
        """Whether the last ``patience`` epochs brought no new best."""
        return self.patience is not None and len(self.history) - self.best_epoch >= self.patience

    def forget(self, engine: Engine) -> None:
        """Forget an earlier fit."""
        self.load_state_dict({"history": [], "best": {}})

    def __call__(self, engine: Engine) -> None:
        """Log an epoch, keep its mixture if it is the best so far, and end a fit that has converged."""
        state, mixture = self.evaluator.state, self.network.mixture
        seconds = engine.state.times[Events.EPOCH_COMPLETED.name]
        values = {**engine.state.metrics, "seconds": seconds, VALIDATION: float(state.metrics[state.key_metric_name])}
        self.history.append({"epoch": engine.state.epoch, **values})
        logger.info(
            f"epoch {engine.state.epoch}/{engine.state.max_epochs}: validation log-likelihood "
            f"{values[VALIDATION]:.2f} nats per patch, {mixture.n_active} active components, "
            f"alpha {float(mixture.weight_concentration):.2f}"
        )
        if self.best_epoch == engine.state.epoch:
            self._best = {name: value.clone() for name, value in mixture.state_dict().items()}
        elif self.has_converged:
            logger.info(f"converged: no better epoch for {self.patience} epochs")
            engine.terminate()

    def restore(self, engine: Engine) -> None:
        """Restore the best mixture."""
        if self._best:
            logger.info(f"keeping epoch {self.best_epoch}, the best on the validation normals")
            self.network.mixture.load_state_dict(self._best)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` takes."""
        return {"history": self.history, "best": self._best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier state."""
        self.history, self._best = list(state["history"]), dict(state["best"])


class MixtureSettler:
    """End a complete fit with passes whose steps decay, see `settle`.

    Args:
        network: its mixture is fitted.
        data_loader: batches of embeddings.
        n_epochs: number of passes; 0 for none.

    Raises:
        InputError: ``n_epochs`` below 0.
    """

    def __init__(self, network: PatchAnomalyNetwork, data_loader: DataLoader, n_epochs: int) -> None:
        if n_epochs < 0:
            raise InputError(f"settling_epochs must be at least 0; got {n_epochs}.")
        self.network = network
        self.data_loader = data_loader
        self.n_epochs = n_epochs

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that restores the best mixture."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Make the passes."""
        settle(self.network.mixture, self.data_loader, self.n_epochs, after=engine.state.max_epochs or 0)


class TailFitter:
    """Fit the degrees of freedom of Student's t distributions to held-out patches when a fit is complete.

    Args:
        network: its mixture is fitted; one of Gaussians is left as it is.
        embeddings: validation set.
        seed: seed of the draw of patches.
        n_patches: number of patches to draw, uniformly.
    """

    def __init__(
        self, network: PatchAnomalyNetwork, embeddings: CachedEmbeddings, seed: int, n_patches: int = 20000
    ) -> None:
        self.network = network
        self.embeddings = embeddings
        self.seed = seed
        self.n_patches = n_patches

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that restores the best mixture."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Fit them."""
        mixture = self.network.mixture
        if mixture.distribution == "student_t":
            nu = mixture.fit_degrees_of_freedom(self.embeddings.sample(self.n_patches, self.seed))
            logger.info(f"{nu:.1f} degrees of freedom, the most likely on the validation normals")


class AcquisitionRecorder:
    """Let a fitted network know its field of view, and the DICOM series of its training set.

    The network of a fit on other files than DICOM knows no series.

    Args:
        network: see `PatchAnomalyNetwork`, its attributes.
        embeddings: training set.
        field_of_view_mm: see `scripts.data.SetFieldOfViewd`.
    """

    def __init__(
        self, network: PatchAnomalyNetwork, embeddings: EmbeddingDataset, field_of_view_mm: float | None = None
    ) -> None:
        self.network = network
        self.embeddings = embeddings
        self.field_of_view_mm = field_of_view_mm

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before the handler that writes the network."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Read the headers of the cases that the network is fitted on."""
        self.network.field_of_view_mm = self.field_of_view_mm
        cases = getattr(self.embeddings.cases, "data", self.embeddings.cases)
        images = [case["image"] for case in cases if case["case"] not in self.embeddings.failed]
        series = read_acquisitions(images) if all(isinstance(image, str) for image in images) else None
        self.network.acquisition = fitted_acquisition(series) if series else None
