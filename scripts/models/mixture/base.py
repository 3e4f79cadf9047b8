"""Base class of the Gaussian components of a mixture."""

import math

import torch
from torch import nn

EPS = torch.finfo(torch.float32).eps  # keeps the mass of an empty component above 0
RESP_CUTOFF = 1e-14  # smaller responsibilities are negligible against EPS
LOG_RESP_CUTOFF = 36.0  # nats below the best component; a responsibility of 2e-16 is negligible against EPS


class Gaussians(nn.Module):
    """K Gaussians in D dimensions. Parameters and running sufficient statistics are buffers.

    A subclass implements one covariance type. Methods take ``components``, indices ``[k]``, so that components without
    weight cost nothing.

    Args:
        n_components: K.
        n_features: D.
        reg_covar: added to every variance.
        covariance_shape: shape of ``covariances``.
        second_shape: shape of ``second_statistic``.

    Attributes:
        means: ``[K,D]``.
        covariances: the shape depends on the type.
        first_statistic: running mean of ``r x``, ``[K,D]``.
        second_statistic: running mean of the terms of ``r x x^T`` that the covariance needs.
        statistics: names of the buffers of running means, the keys of `sufficient_stats`.
    """

    means: torch.Tensor
    covariances: torch.Tensor
    first_statistic: torch.Tensor
    second_statistic: torch.Tensor

    def __init__(
        self,
        n_components: int,
        n_features: int,
        reg_covar: float,
        covariance_shape: tuple[int, ...],
        second_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.n_components = n_components
        self.n_features = n_features
        self.reg_covar = reg_covar
        self.statistics = ["first_statistic", "second_statistic"]
        self.register_buffer("means", torch.zeros(n_components, n_features))
        self.register_buffer("covariances", torch.ones(covariance_shape))
        self.register_buffer("first_statistic", torch.zeros(n_components, n_features))
        self.register_buffer("second_statistic", torch.zeros(second_shape))

    def start(self, x: torch.Tensor, means: torch.Tensor) -> None:
        """Set means ``[K,D]`` and the covariance of samples ``[N,D]`` for all components; clear the statistics."""
        self.means.copy_(means)
        self.initialize_covariances(x)
        for name in self.statistics:
            getattr(self, name).zero_()

    def initialize_covariances(self, x: torch.Tensor) -> None:
        """Set the covariance of samples ``[N,D]`` for all components."""
        raise NotImplementedError

    def squared_mahalanobis(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Return squared Mahalanobis distances ``[N,k]`` of samples ``[N,D]``, not negative."""
        raise NotImplementedError

    def reconstruction_error(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Return squared distances ``[N,k]`` to the components' subspaces; low-rank covariances only."""
        raise NotImplementedError

    def log_determinants(self, components: torch.Tensor) -> torch.Tensor:
        """Return the log determinants ``[k]`` of the covariances."""
        raise NotImplementedError

    def largest_variances(self, components: torch.Tensor) -> torch.Tensor:
        """Return an upper bound ``[k]`` of the variance in any direction."""
        raise NotImplementedError

    def sufficient_stats(
        self, resp: torch.Tensor, x: torch.Tensor, components: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Sum the terms of each statistic over samples: ``resp [N,k]``, ``x [N,D]`` -> ``[k,...]`` by name."""
        raise NotImplementedError

    def update(self, mass: torch.Tensor) -> None:
        """Set parameters from statistics; ``mass [K]`` is the running mean responsibility plus `EPS`."""
        raise NotImplementedError

    def log_density(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Return log densities ``[N,k]`` of samples ``[N,D]``, in nats."""
        constants = add_log_2_pi(self.log_determinants(components), self.n_features)
        return self.squared_mahalanobis(x, components).add_(constants).mul_(-0.5)

    def log_joint(
        self, x: torch.Tensor, log_weights: torch.Tensor, active: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the log of weight times density for the components whose responsibility can be above 0.

        Args:
            x: samples ``[N,D]``.
            log_weights: log weights of all components, ``[K]``.
            active: indices of the components with weight. Others are added unless a bound shows that they are
                `LOG_RESP_CUTOFF` below the best component for every sample.

        Returns:
            ``[N,k]``, and the indices ``[k]`` of these components.
        """
        log_joint = self.log_density(x, active).add_(log_weights[active])
        candidates = self.candidate_components(x, log_weights, active, log_joint.amax(1))
        if len(candidates):
            candidate_log_joint = self.log_density(x, candidates).add_(log_weights[candidates])
            log_joint, active = torch.cat([log_joint, candidate_log_joint], 1), torch.cat([active, candidates])
        return log_joint, active

    def e_step(
        self, x: torch.Tensor, log_weights: torch.Tensor, active: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Compute responsibilities and sum the sufficient statistics of a step.

        Args:
            x: samples ``[N,D]``.
            log_weights: log weights of all components, ``[K]``.
            active: see `log_joint`.

        Returns:
            ``log_likelihood`` (nats, summed over samples), ``resp_statistic [k]`` and the entries of
            `sufficient_stats`; and the indices ``[k]`` of these components.
        """
        log_joint, components = self.log_joint(x, log_weights, active)
        highest = log_joint.amax(1, keepdim=True)
        resp = log_joint.sub_(highest).clamp_(min=-LOG_RESP_CUTOFF).exp_()  # denormal numbers are slow
        total = resp.sum(1, keepdim=True)
        resp.div_(total)
        stats = {
            "log_likelihood": (highest + total.log()).sum(dtype=torch.float64),
            "resp_statistic": resp.sum(0),
            **self.sufficient_stats(resp, x, components),
        }
        return stats, components

    def candidate_components(
        self, x: torch.Tensor, log_weights: torch.Tensor, active: torch.Tensor, best: torch.Tensor
    ) -> torch.Tensor:
        """Return the inactive components ``[k]`` that may come near the ``best [N]`` for some sample of ``x [N,D]``.

        The norms of sample and mean bound their distance from below, and the largest variance bounds the density.
        """
        is_idle = torch.ones_like(log_weights, dtype=torch.bool)
        is_idle[active] = False
        idle = torch.nonzero(is_idle).flatten()
        sample_norms = torch.linalg.vector_norm(x, dim=1)
        mean_norms = torch.linalg.vector_norm(self.means[idle], dim=1)
        distances = torch.maximum(sample_norms.amin() - mean_norms, mean_norms - sample_norms.amax()).clamp(min=0)
        constants = add_log_2_pi(self.log_determinants(idle), self.n_features)
        log_density = (distances.square() / self.largest_variances(idle) + constants).mul(-0.5)
        return idle[~(log_density + log_weights[idle] < best.amin() - LOG_RESP_CUTOFF)]


def add_log_2_pi(log_determinants: torch.Tensor, n_features: int) -> torch.Tensor:
    """Add the constant of a Gaussian density to log determinants and other terms of any shape: ``D log(2 pi)``."""
    return log_determinants + n_features * math.log(2 * math.pi)


def squared_distances(x: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Compute squared Euclidean distances: ``x [N,D]``, ``means [K,D]`` -> ``[N,K]``, not negative."""
    norms = x.square().sum(1, keepdim=True)
    return torch.addmm(means.square().sum(1), x, means.T, alpha=-2).add_(norms).clamp_(min=0)


def assigned_samples(resp: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Find the samples of each component. In many dimensions nearly every sample belongs to a single component.

    Args:
        resp: responsibilities ``[N,K]``.

    Returns:
        For each component the indices ``[n]`` of its samples and their responsibilities ``[n,1]``.
    """
    resp = resp.T.contiguous()
    mask = resp > RESP_CUTOFF
    rows = torch.nonzero(mask)[:, 1].split(mask.sum(1).tolist())
    return [(rows[k], resp[k, rows[k]].unsqueeze(1)) for k in range(len(rows))]
