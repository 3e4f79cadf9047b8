"""Engines of a fit: online EM on embeddings, and the likelihood of held-out embeddings."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.engines import Evaluator, Trainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch.utils.data import DataLoader

from ..errors import InputError
from ..models.mixture import DirichletProcessMixture
from ..models.network import PatchAnomalyNetwork

LOG_LIKELIHOOD = "log_likelihood"
VALIDATION = "validation_log_likelihood"
N_SETTLED = 5  # batches that the statistics before `settle` weigh as much as: those that a step of 0.2 remembers


def step_size_at(schedule: str, rate: float | None, step: int) -> float:
    """Compute the step size, the weight of a batch against all batches before it.

    Args:
        schedule: ``"ema"``, an exponential moving average with the constant ``rate``; ``"exp"``, ``step ** -rate``.
        rate: constant or exponent; None is a step size of 1, batch EM.
        step: number of the step, from 1.

    Returns:
        A number in (0,1].

    Raises:
        InputError: an unknown schedule or a rate out of its range.
    """
    if schedule not in ("ema", "exp"):
        raise InputError(f"schedule must be 'ema' or 'exp'; got {schedule!r}.")
    if rate is None:
        return 1.0
    if not isinstance(rate, int | float) or not 0 < rate <= 1:
        raise InputError(f"step_size must be a number above 0 and at most 1; got {rate!r}.")
    return rate if schedule == "ema" else step**-rate


def online_em_step(mixture: DirichletProcessMixture, embeddings: torch.Tensor, step_size: float) -> float:
    """Make one step of online EM on the embeddings ``[N,D]`` of a batch; several processes add their sums.

    Returns:
        See `DirichletProcessMixture.m_step`.
    """
    sufficient_stats = mixture.e_step(embeddings.to(mixture.means))
    for value in sufficient_stats.values():
        idist.all_reduce(value)  # in place; no-op in a single process
    return mixture.m_step(sufficient_stats, step_size)


def set_epoch(data_loader: Any, epoch: int) -> None:
    """Let a data loader whose batches depend on the epoch draw those of ``epoch``."""
    set_of_sampler = getattr(getattr(data_loader, "batch_sampler", None), "set_epoch", None)
    if set_of_sampler:
        set_of_sampler(epoch)


def settle(mixture: DirichletProcessMixture, data_loader: DataLoader, n_epochs: int, after: int = 0) -> None:
    """End a fit with passes whose steps decay, so that all batches weigh the same.

    A constant step forgets all but the last batches, and the mixture goes on moving with them. The i-th step here has
    the size ``1 / (i + N_SETTLED)`` (Cappe & Moulines, 2009, section 3.2).

    Args:
        mixture: the mixture.
        data_loader: batches of embeddings ``[N,D]``.
        n_epochs: number of passes; 0 changes nothing.
        after: number of the epoch before, for the order of the batches.
    """
    step = 0
    for epoch in range(after + 1, after + n_epochs + 1):
        set_epoch(data_loader, epoch)
        for batch in data_loader:
            step += 1
            online_em_step(mixture, batch, 1 / (step + N_SETTLED))


class OnlineEMTrainer(Trainer):
    """Fit a mixture by online EM: one iteration is one step on one batch of embeddings, one epoch is one pass.

    After every step ``state.metrics`` holds the epoch's mean ``log_likelihood`` so far (nats per patch, before a step),
    ``active_components``, the ``concentration`` alpha and the ``step_size``.

    Several processes divide each batch and add their sums over samples, so that all of them make the step of a single
    process.

    Args:
        device: device of the mixture.
        max_epochs: number of passes over the embeddings.
        train_data_loader: batches of embeddings ``[N,D]``.
        network: its mixture is fitted.
        step_size: see `step_size_at`.
        schedule: see `step_size_at`.
        train_handlers: see `monai.engines.Trainer`.

    Raises:
        InputError: an argument out of its range.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        network: PatchAnomalyNetwork,
        step_size: float | None = 0.2,
        schedule: str = "ema",
        train_handlers: Any = None,
    ) -> None:
        if max_epochs < 1:
            raise InputError(f"max_epochs must be at least 1; got {max_epochs}.")
        step_size_at(schedule, step_size, 1)
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            handlers=train_handlers,
            decollate=False,
        )
        self.network = network
        self.step_size = step_size
        self.schedule = schedule
        self._log_likelihoods: list[float] = []
        self.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)

    def _start_epoch(self) -> None:
        self._log_likelihoods.clear()
        set_epoch(self.data_loader, self.state.epoch)

    def _iteration(self, engine: OnlineEMTrainer, batchdata: torch.Tensor) -> list[dict[str, float]]:
        mixture = engine.network.mixture
        step_size = step_size_at(self.schedule, self.step_size, int(mixture.n_steps) + 1)
        log_likelihood = online_em_step(mixture, batchdata, step_size)
        engine.state.output = [{Keys.LOSS: -log_likelihood, LOG_LIKELIHOOD: log_likelihood}]  # as if decollated
        self._log_likelihoods.append(log_likelihood)
        engine.state.metrics = {
            LOG_LIKELIHOOD: sum(self._log_likelihoods) / len(self._log_likelihoods),
            "active_components": mixture.n_active,
            "concentration": float(mixture.weight_concentration),
            "step_size": step_size,
        }
        for event in (
            IterationEvents.FORWARD_COMPLETED,
            IterationEvents.LOSS_COMPLETED,
            IterationEvents.MODEL_COMPLETED,
        ):
            engine.fire_event(event)
        return engine.state.output


class LikelihoodEvaluator(Evaluator):
    """Compute the metric ``validation_log_likelihood``, the mean over held-out embeddings in nats per patch.

    Args:
        device: device of the mixture.
        val_data_loader: batches of embeddings ``[N,D]``.
        network: its mixture is evaluated.
        val_handlers: see `monai.engines.Evaluator`.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: DataLoader,
        network: PatchAnomalyNetwork,
        val_handlers: Any = None,
    ) -> None:
        super().__init__(
            device=device,
            val_data_loader=val_data_loader,
            key_val_metric={VALIDATION: Average(output_transform=lambda output: output.unsqueeze(1))[0]},
            val_handlers=val_handlers,
            decollate=False,
        )
        self.network = network

    @torch.no_grad()
    def _iteration(self, engine: LikelihoodEvaluator, batchdata: torch.Tensor) -> torch.Tensor:
        embeddings = batchdata.to(engine.state.device, torch.float32)
        return engine.network.mixture.score_samples(embeddings).double()
