"""A Dirichlet process mixture of Gaussians, fitted by online EM."""

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError
from . import diagonal
from .stick_breaking import log_stick_weights, update_concentration, update_fractions

SCORE_KINDS = ("cosine", "euclidean", "mahalanobis", "negative_log_likelihood", "subspace")
ROWS_AT_ONCE = 16384  # bounds the memory of a step: [rows, K] and [rows, D]


class DirichletProcessMixture(nn.Module):
    """Truncated stick-breaking mixture (Blei & Jordan, 2006) by online EM (Cappe & Moulines, 2009).

    The number of components is an upper bound: the sticks leave most of them without weight. Everything fitted, alpha
    and the sufficient statistics included, is a buffer: saved, loaded and continued, a fit goes on as if never stopped.

    Args:
        n_components: truncation level K.
        n_features: length D of an embedding.
        covariance_type: ``"diag"``.
        weight_concentration: alpha at the start; more of it spreads the weight over more components.
        learn_weight_concentration: whether alpha is fitted.
        reg_covar: added to every variance.

    Attributes:
        means: ``[K,D]``.
        covariances: variances ``[K,D]``.
        stick_fractions: v ``[K]``.
        weight_concentration: alpha, a scalar.
        n_steps: online-EM steps made, a scalar.

    Raises:
        InputError: an argument out of its range.
    """

    __jit_unused_properties__ = ("is_fitted", "n_active")

    means: torch.Tensor
    covariances: torch.Tensor
    stick_fractions: torch.Tensor
    weight_concentration: torch.Tensor
    resp_statistic: torch.Tensor
    first_statistic: torch.Tensor
    second_statistic: torch.Tensor
    n_steps: torch.Tensor

    def __init__(
        self,
        n_components: int,
        n_features: int,
        covariance_type: str = "diag",
        weight_concentration: float = 2.0,
        learn_weight_concentration: bool = True,
        reg_covar: float = 1e-6,
    ) -> None:
        super().__init__()
        if n_components < 1 or n_features < 1:
            raise InputError(f"n_components and n_features must be at least 1; got {n_components} and {n_features}.")
        if covariance_type != "diag":
            raise InputError(f"covariance_type must be 'diag', the only one there is yet; got {covariance_type!r}.")
        if weight_concentration <= 0 or reg_covar <= 0:
            raise InputError(
                f"weight_concentration and reg_covar must be positive; got {weight_concentration} and {reg_covar}."
            )
        self.n_components = int(n_components)
        self.n_features = int(n_features)
        self.covariance_type = covariance_type
        self.score_kinds = SCORE_KINDS[:-1]  # a subspace needs a low-rank covariance
        self.initial_concentration = float(weight_concentration)
        self.learn_weight_concentration = bool(learn_weight_concentration)
        self.reg_covar = float(reg_covar)
        per_feature = torch.zeros(self.n_components, self.n_features)
        per_component = torch.zeros(self.n_components)
        self.register_buffer("means", per_feature.clone())
        self.register_buffer("covariances", per_feature + 1)
        self.register_buffer("stick_fractions", per_component.clone())
        self.register_buffer("weight_concentration", torch.tensor(self.initial_concentration))
        self.register_buffer("resp_statistic", per_component.clone())
        self.register_buffer("first_statistic", per_feature.clone())
        self.register_buffer("second_statistic", per_feature.clone())
        self.register_buffer("n_steps", torch.tensor(0))

    @torch.no_grad()
    def initialize(
        self, embeddings: torch.Tensor, means: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Start a fit: means from samples, one covariance for all, sticks from their prior, empty statistics.

        Args:
            embeddings: samples ``[N,D]``, best drawn from the whole training set.
            means: ``[K,D]``; by default K different rows of ``embeddings``.
            generator: source of randomness, on the CPU.

        Raises:
            InputError: fewer samples than components and no means, or tensors of other shapes.
        """
        x = self._samples(embeddings)
        if means is None:
            if len(x) < self.n_components:
                raise InputError(
                    f"{self.n_components} components need as many patches to start from; got {len(x)}. "
                    "Reduce n_components or give more normal images."
                )
            means = x[torch.randperm(len(x), generator=generator)[: self.n_components].to(x.device)]
        if means.shape != self.means.shape:
            raise InputError(f"means must be of shape {tuple(self.means.shape)}; got {tuple(means.shape)}.")
        uniform = torch.rand(self.n_components, generator=generator)
        fractions = 1 - uniform.pow(1 / self.initial_concentration)  # Beta(1, alpha) by its inverse
        fractions[-1] = 1
        self.means.copy_(means)
        self.covariances.copy_(x.var(0, correction=min(1, len(x) - 1)) + self.reg_covar)
        self.stick_fractions.copy_(fractions)
        self.weight_concentration.fill_(self.initial_concentration)
        for statistic in (self.resp_statistic, self.first_statistic, self.second_statistic, self.n_steps):
            statistic.zero_()

    @torch.no_grad()
    def partial_fit(self, embeddings: torch.Tensor, step_size: float) -> float:
        """One step of online EM.

        Args:
            embeddings: samples ``[N,D]``.
            step_size: weight in (0,1] of this batch against all before.

        Returns:
            Mean log-likelihood of the batch under the parameters before the step, nats per patch.

        Raises:
            InputError: samples of another shape, a step size out of range.
            RuntimeError: the mixture was not initialised, or a sample is not finite.
        """
        if not 0 < step_size <= 1:
            raise InputError(f"A step size must be above 0 and at most 1; got {step_size}.")
        x = self._samples(embeddings)
        if not bool(self.stick_fractions.any()):
            raise RuntimeError("The mixture has no start; call `initialize` before `partial_fit`.")
        log_weights = log_stick_weights(self.stick_fractions)
        resp_sum = torch.zeros_like(self.resp_statistic)
        first_sum = torch.zeros_like(self.first_statistic)
        second_sum = torch.zeros_like(self.second_statistic)
        log_likelihood = torch.zeros((), dtype=torch.float64, device=x.device)
        for rows in x.split(ROWS_AT_ONCE):
            log_joint = diagonal.log_density(rows, self.means, self.covariances).add_(log_weights)
            log_norm = log_joint.logsumexp(1, keepdim=True)
            resp = log_joint.sub_(log_norm).exp_()
            resp_sum += resp.sum(0)
            first_sum += resp.T @ rows
            second_sum += diagonal.second_moment(resp, rows)
            log_likelihood += log_norm.sum(dtype=torch.float64)
        mean_log_likelihood = float(log_likelihood / len(x))
        if mean_log_likelihood != mean_log_likelihood or abs(mean_log_likelihood) == float("inf"):
            raise RuntimeError(f"The log-likelihood of this batch is {mean_log_likelihood}: are the embeddings finite?")

        self.resp_statistic.lerp_(resp_sum / len(x), step_size)
        self.first_statistic.lerp_(first_sum / len(x), step_size)
        self.second_statistic.lerp_(second_sum / len(x), step_size)
        means, variances = diagonal.update(
            self.resp_statistic, self.first_statistic, self.second_statistic, self.reg_covar
        )
        self.means.copy_(means)
        self.covariances.copy_(variances)
        self.stick_fractions.copy_(update_fractions(self.resp_statistic, self.weight_concentration, len(x)))
        if self.learn_weight_concentration:
            self.weight_concentration.copy_(
                update_concentration(self.resp_statistic, self.weight_concentration, len(x))
            )
        self.n_steps += 1
        return mean_log_likelihood

    def log_weights(self) -> torch.Tensor:
        """Log of the normalised component weights, ``[K]``."""
        return F.log_softmax(log_stick_weights(self.stick_fractions), dim=0)

    def active(self) -> torch.Tensor:
        """Indices of the components whose weight is above 1e-6; all others are left out of every score."""
        return torch.nonzero(self.log_weights() > -13.815510557964274).flatten()

    @property
    def n_active(self) -> int:
        """Number of components whose weight is above 1e-6."""
        return len(self.active())

    @property
    def is_fitted(self) -> bool:
        """Whether at least one step was made."""
        return int(self.n_steps) > 0

    def score_samples(self, x: torch.Tensor) -> torch.Tensor:
        """Log-likelihood of samples: higher is more normal.

        Args:
            x: ``[N,D]``.

        Returns:
            ``[N]`` in nats.
        """
        active = self.active()
        log_weights = log_stick_weights(self.stick_fractions)[active]
        return (diagonal.log_density(x, self.means[active], self.covariances[active]) + log_weights).logsumexp(1)

    def anomaly_score(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        """How unlike every component samples are: higher is more anomalous.

        Args:
            x: ``[N,D]``.
            kind: ``cosine`` (the paper's: 1 minus the largest cosine similarity to a mean), ``euclidean`` or
                ``mahalanobis`` (the smallest distance), or ``negative_log_likelihood`` (nats).

        Returns:
            ``[N]``.

        Raises:
            ValueError: an unknown kind.
        """
        if kind == "negative_log_likelihood":
            return -self.score_samples(x)
        active = self.active()
        means = self.means[active]
        if kind == "cosine":
            return 1 - (F.normalize(x, dim=1) @ F.normalize(means, dim=1).T).amax(1)
        if kind == "euclidean":
            return diagonal.squared_mahalanobis(x, means, torch.ones_like(means)).amin(1).sqrt()
        if kind == "mahalanobis":
            return diagonal.squared_mahalanobis(x, means, self.covariances[active]).amin(1).sqrt()
        raise ValueError(f"There is no anomaly score {kind} for a mixture of diagonal Gaussians.")

    def _samples(self, embeddings: torch.Tensor) -> torch.Tensor:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.n_features or not len(embeddings):
            raise InputError(
                f"Embeddings must be of shape [N, {self.n_features}], N at least 1; got {tuple(embeddings.shape)}."
            )
        return embeddings.to(self.means)
