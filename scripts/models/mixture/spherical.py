"""Gaussians with one variance for all features."""

import torch

from .diagonal import DiagonalGaussians


class SphericalGaussians(DiagonalGaussians):
    """`DiagonalGaussians` with the mean over features for each variance: ``covariances [K,D]``, rows of one number."""

    def initialize_covariances(self, x: torch.Tensor) -> None:
        """Give all components the mean variance of samples ``[N,D]``."""
        super().initialize_covariances(x)
        self._average()

    def update(self, mass: torch.Tensor) -> None:
        """As `DiagonalGaussians`, then the mean over features."""
        super().update(mass)
        self._average()

    def _average(self) -> None:
        self.covariances.copy_(self.covariances.mean(1, keepdim=True).expand_as(self.covariances))
