"""Cross-fitting: every normal case is scored by a mixture that was fitted without it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader

from ..errors import InputError
from ..models.mixture import DirichletProcessMixture
from ..models.network import PatchAnomalyNetwork
from .embeddings import CachedEmbeddings
from .handlers import BestModelTracker, MixtureInitializer
from .sampler import DistributedBatchSampler
from .trainer import OnlineEMTrainer, settle

logger = logging.getLogger(__name__)

ENOUGH_CASES = 30  # held-out cases that set the detection limits without cross-fitting


class HeldOut(NamedTuple):
    """Cases, and a mixture that was fitted without them."""

    mixture: DirichletProcessMixture
    embeddings: CachedEmbeddings


class CrossFit:
    """Fit mixtures on all normal cases but a fold, for each fold, and one on all of them.

    Each fit has the settings and the seed of the fit that has just ended, and as many epochs as its best one. The
    embeddings are read from the cache.

    Args:
        network: its mixture has the settings; `refit` replaces it.
        tracker: knows the best epoch.
        train: training set.
        validation: validation set, which decided the best epoch.
        n_folds: number of folds, at least 2; None for no cross-fitting.
        batch_slices: see `DistributedBatchSampler`.
        step_size: see `OnlineEMTrainer`.
        schedule: see `OnlineEMTrainer`.
        init_params: see `MixtureInitializer`.
        seed: seed of the folds and of each fit.
        settling_epochs: see `MixtureSettler`.

    Raises:
        InputError: fewer than 2 folds.
    """

    def __init__(
        self,
        network: PatchAnomalyNetwork,
        tracker: BestModelTracker,
        train: CachedEmbeddings,
        validation: CachedEmbeddings,
        n_folds: int | None = 5,
        batch_slices: int = 12,
        step_size: float | None = 0.2,
        schedule: str = "ema",
        init_params: str = "random_from_data",
        seed: int = 0,
        settling_epochs: int = 0,
    ) -> None:
        if n_folds is not None and n_folds < 2:
            raise InputError(f"calibration_folds must be at least 2, or off; got {n_folds}.")
        self.network = network
        self.tracker = tracker
        self.train = train
        self.validation = validation
        self.n_folds = n_folds
        self.batch_slices = batch_slices
        self.step_size = step_size
        self.schedule = schedule
        self.init_params = init_params
        self.seed = seed
        self.settling_epochs = settling_epochs

    @property
    def is_needed(self) -> bool:
        """Whether there are too few validation cases, and enough cases and patches in all for the folds."""
        if self.n_folds is None or self.validation.n_used >= ENOUGH_CASES:
            return False
        n_components = self.network.mixture.n_components
        return all(rest.n_used and rest.n_patches >= n_components for _, rest in self.folds())

    def folds(self) -> list[tuple[CachedEmbeddings, CachedEmbeddings]]:
        """Divide all normal cases; return each fold with the rest."""
        normals = self.train + self.validation
        order = np.random.default_rng(self.seed).permutation(normals.n_used)
        folds = np.array_split(order, min(self.n_folds or 1, normals.n_used))
        return [
            (normals.select(sorted(fold)), normals.select(sorted(set(order.tolist()).difference(fold.tolist()))))
            for fold in folds
        ]

    def held_out(self) -> Iterator[HeldOut]:
        """Fit on the rest of each fold.

        Yields:
            Each fold and the mixture fitted without it.
        """
        folds = self.folds()
        for number, (fold, rest) in enumerate(folds, 1):
            logger.info(f"cross-fitting: fold {number} of {len(folds)}, {rest.n_used} cases to fit on")
            yield HeldOut(self.fit(rest), fold)

    def refit(self) -> None:
        """Replace the network's mixture by one fitted on all normal cases."""
        logger.info("fitting on all normal cases")
        self.network.mixture.load_state_dict(self.fit(self.train + self.validation).state_dict())

    def fit(self, embeddings: CachedEmbeddings) -> DirichletProcessMixture:
        """Fit a new mixture; several processes share the work."""
        mixture = copy.deepcopy(self.network.mixture)
        fitted = SimpleNamespace(mixture=mixture)
        sampler = DistributedBatchSampler(embeddings, self.batch_slices, self.seed)
        data_loader = DataLoader(embeddings, batch_sampler=sampler, collate_fn=embeddings.collate)
        n_epochs = max(1, self.tracker.best_epoch)
        trainer = OnlineEMTrainer(
            mixture.means.device,
            n_epochs,
            data_loader,
            fitted,  # type: ignore[arg-type]
            self.step_size,
            self.schedule,
            [MixtureInitializer(fitted, embeddings, self.seed, self.init_params)],  # type: ignore[arg-type]
        )
        trainer.logger.setLevel(logging.WARNING)
        trainer.run()
        settle(mixture, data_loader, self.settling_epochs, after=n_epochs)
        return mixture
