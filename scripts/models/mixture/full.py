"""Gaussians with full covariance matrices."""

from collections.abc import Sequence

import torch

from ...errors import InputError
from .base import EPS
from .correlated import CorrelatedGaussians


class FullGaussians(CorrelatedGaussians):
    """Gaussians with ``covariances [K,D,D]`` and the inverses of their Cholesky factors.

    Components are computed one by one, so that no tensor is larger than ``[N,K]``, ``[N,D]`` or ``[K,D,D]``. In many
    dimensions nearly every patch belongs to one component, so second moments are summed over assigned patches only.

    Attributes:
        whitening: ``[K,D,D]``, lower triangular, ``whitening @ covariance @ whitening.T = I``.
    """

    whitening: torch.Tensor

    def __init__(self, n_components: int, n_features: int, reg_covar: float) -> None:
        shape = (n_components, n_features, n_features)
        super().__init__(n_components, n_features, reg_covar, shape, shape)
        self.covariances.copy_(torch.eye(n_features).expand(shape))
        self.register_buffer("whitening", self.covariances.clone())

    def start_from_axes(self, variances: torch.Tensor, axes: torch.Tensor) -> None:
        """Set one covariance, see `CorrelatedGaussians`."""
        covariance = (axes * (variances + self.reg_covar)) @ axes.T
        self.set_covariances(covariance.to(self.covariances).expand_as(self.covariances))

    def set_covariances(self, covariances: torch.Tensor) -> None:
        """Set covariances ``[K,D,D]``.

        Raises:
            InputError: a covariance is not positive definite.
        """
        self.whitening.copy_(_whitening(covariances))
        self.covariances.copy_(covariances)

    def squared_mahalanobis(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Compute squared distances, see `Gaussians`."""
        distances = x.new_empty((components.shape[0], x.shape[0]))
        for index in range(components.shape[0]):
            white = (x - self.means[components[index]]) @ self.whitening[components[index]].T
            distances[index] = white.square().sum(1)
        return distances.T.contiguous()

    def log_determinants(self, components: torch.Tensor) -> torch.Tensor:
        """Compute log determinants, see `Gaussians`."""
        return -2 * self.whitening.diagonal(dim1=1, dim2=2)[components].log().sum(1)

    def largest_variances(self, components: torch.Tensor) -> torch.Tensor:
        """Bound the largest eigenvalue by the largest sum of magnitudes in a row."""
        return torch.linalg.vector_norm(self.covariances, ord=1, dim=2)[components].amax(1)

    def squared_mahalanobis_of_rows(
        self, x: torch.Tensor, components: torch.Tensor, rows: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Compute squared distances, see `CorrelatedGaussians`."""
        return [
            ((x.index_select(0, indices) - self.means[component]) @ self.whitening[component].T).square().sum(1)
            for indices, component in zip(rows, components.tolist(), strict=True)
        ]

    def marginal_covariances(self, components: torch.Tensor) -> torch.Tensor:
        """Project the covariances, see `CorrelatedGaussians`."""
        return self.directions.T @ (self.covariances[components] @ self.directions)

    def assigned_stats(
        self, x: torch.Tensor, assigned: list[tuple[torch.Tensor, torch.Tensor]], components: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Sum ``r x`` ``[k,D]`` and ``r (x - c) (x - c)^T`` ``[k,D,D]``, c the centre."""
        first = x.new_zeros((len(components), self.n_features))
        second = x.new_zeros((len(components), self.n_features, self.n_features))
        for index, (rows, weights) in enumerate(assigned):
            samples = x.index_select(0, rows)
            torch.mv(samples.T, weights[:, 0], out=first[index])
            samples -= self.centre
            torch.mm((samples * weights).T, samples, out=second[index])
        return {"first_statistic": first, "second_statistic": second}

    def update(self, mass: torch.Tensor) -> None:
        """Set ``m = M / (R + eps)`` and ``C = (sum of r x x^T) / (R + eps) - m m^T + reg I``.

        With second moments S about a centre c, to reduce cancellation:
        ``C = S / (R + eps) - (m - c) (m - c)^T + eps / (R + eps) c c^T + reg I``.

        Raises:
            InputError: a covariance is not positive definite.
        """
        self.means.copy_(self.first_statistic / mass.unsqueeze(1))
        offsets = self.means - self.centre
        left = torch.stack([-offsets, (EPS / mass).unsqueeze(1) * self.centre], 2)
        right = torch.stack([offsets, self.centre.expand_as(offsets)], 1)
        covariances = self.second_statistic / mass.view(-1, 1, 1)
        covariances.baddbmm_(left, right).diagonal(dim1=1, dim2=2).add_(self.reg_covar)
        self.set_covariances(covariances)


def _whitening(covariances: torch.Tensor) -> torch.Tensor:
    """Compute inverse Cholesky factors ``[...,D,D]`` of covariances ``[...,D,D]``."""
    factors, failed = torch.linalg.cholesky_ex(covariances)
    if bool(failed.any()):
        raise InputError(
            f"The covariances of {int((failed > 0).sum())} components are not positive definite: too few patches fall "
            "to them. Reduce n_components or raise reg_covar (1e-3 is usual with full covariances)."
        )
    identity = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
    return torch.linalg.solve_triangular(factors, identity, upper=False)
