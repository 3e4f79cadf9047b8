"""Gaussians with diagonal covariance: distances, densities, and parameters from sufficient statistics.

Nothing here is larger than ``[N,K]``, ``[N,D]`` or ``[K,D]``: every function is matrix products.
"""

from __future__ import annotations

import math

import torch


def squared_mahalanobis(x: torch.Tensor, means: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
    """Squared Mahalanobis distances, ``sum_d (x_d - m_d)^2 / s_d`` expanded into two matrix products.

    Args:
        x: samples ``[N,D]``.
        means: ``[K,D]``.
        variances: ``[K,D]``, positive.

    Returns:
        ``[N,K]``, not negative.
    """
    precisions = variances.reciprocal()
    constant = (means.square() * precisions).sum(1)
    distances = torch.addmm(constant, x, (means * precisions).T, alpha=-2)
    return distances.addmm_(x.square(), precisions.T).clamp_(min=0)


def log_density(x: torch.Tensor, means: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
    """Log densities of the Gaussians.

    Args:
        x: samples ``[N,D]``.
        means: ``[K,D]``.
        variances: ``[K,D]``, positive.

    Returns:
        ``[N,K]`` in nats.
    """
    log_normaliser = variances.log().sum(1) + x.shape[1] * math.log(2 * math.pi)
    return squared_mahalanobis(x, means, variances).add_(log_normaliser).mul_(-0.5)


def second_moment(resp: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Sum of ``r x^2`` over samples: ``resp [N,K]``, ``x [N,D]`` -> ``[K,D]``."""
    return resp.T @ x.square()


def update(
    resp: torch.Tensor, first: torch.Tensor, second: torch.Tensor, reg_covar: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means ``M / (R + eps)`` and variances ``S / (R + eps) + m^2 - 2 m M / (R + eps) + reg``.

    Args:
        resp: running mean responsibilities R ``[K]``.
        first: running means of ``r x``, M ``[K,D]``.
        second: running means of ``r x^2``, S ``[K,D]``.
        reg_covar: added to every variance.

    Returns:
        Means and variances, each ``[K,D]``. Rounding never takes a variance below ``reg_covar``.
    """
    mass = (resp + torch.finfo(resp.dtype).eps).unsqueeze(1)
    means = first / mass
    return means, (second / mass - means.square()).clamp_(min=0) + reg_covar
