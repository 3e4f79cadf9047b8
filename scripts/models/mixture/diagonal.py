"""Gaussians with uncorrelated features: one variance per feature, or one for all features."""

import torch

from .base import Gaussians


class DiagonalGaussians(Gaussians):
    """Gaussians with variances ``covariances [K,D]``. No tensor is larger than ``[N,K]``, ``[N,D]`` or ``[K,D]``."""

    def __init__(self, n_components: int, n_features: int, reg_covar: float) -> None:
        shape = (n_components, n_features)
        super().__init__(n_components, n_features, reg_covar, shape, shape)

    def initialize_covariances(self, x: torch.Tensor) -> None:
        """Set the variances of samples ``[N,D]`` for all components."""
        self.covariances.copy_(x.var(0, correction=min(1, len(x) - 1)) + self.reg_covar)

    def squared_mahalanobis(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Compute ``sum_d (x_d - m_d)^2 / s_d``, expanded into two matrix products."""
        means, precisions = self.means[components], self.covariances[components].reciprocal()
        constant = (means.square() * precisions).sum(1)
        distances = torch.addmm(constant, x, (means * precisions).T, alpha=-2)
        return distances.addmm_(x.square(), precisions.T).clamp_(min=0)

    def log_determinants(self, components: torch.Tensor) -> torch.Tensor:
        """Compute log determinants, see `Gaussians`."""
        return self.covariances[components].log().sum(1)

    def largest_variances(self, components: torch.Tensor) -> torch.Tensor:
        """Bound the variances, see `Gaussians`."""
        return self.covariances[components].amax(1)

    def sufficient_stats(
        self, resp: torch.Tensor, x: torch.Tensor, components: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Sum ``r x`` and ``r x^2``, each ``[k,D]``."""
        return {"first_statistic": resp.T @ x, "second_statistic": resp.T @ x.square()}

    def update(self, mass: torch.Tensor) -> None:
        """Set ``m = M / (R + eps)`` and ``s = S / (R + eps) + m^2 - 2 m M / (R + eps) + reg``; s is never below reg."""
        self.means.copy_(self.first_statistic / mass.unsqueeze(1))
        variances = self.second_statistic / mass.unsqueeze(1) - self.means.square()
        self.covariances.copy_(variances.clamp_(min=0) + self.reg_covar)


class SphericalGaussians(DiagonalGaussians):
    """Gaussians with one variance, the mean over features: each row of ``covariances [K,D]`` repeats one number."""

    def initialize_covariances(self, x: torch.Tensor) -> None:
        """Set the mean variance of samples ``[N,D]`` for all components."""
        super().initialize_covariances(x)
        self._average()

    def update(self, mass: torch.Tensor) -> None:
        """Update as `DiagonalGaussians`, then average over features."""
        super().update(mass)
        self._average()

    def _average(self) -> None:
        self.covariances.copy_(self.covariances.mean(1, keepdim=True).expand_as(self.covariances))
