"""What the Gaussians of a mixture have in common, whatever their covariance."""

import math

import torch
from torch import nn

EPS = torch.finfo(torch.float32).eps  # keeps the mass of a starved component from 0
RESP_CUTOFF = 1e-14  # smaller responsibilities are negligible against EPS
LOG_RESP_CUTOFF = 36.0  # nats below the best component; a responsibility of 2e-16 is negligible against EPS


class Gaussians(nn.Module):
    """K Gaussians in D dimensions: parameters and the running statistics they follow from, all of them buffers.

    A subclass gives the maths of one covariance type. Components are always named by ``components``, indices ``[k]``, so
    that those without a say cost nothing.

    Args:
        n_components: K.
        n_features: D.
        reg_covar: added to every variance.
        covariance_shape: shape of ``covariances``.
        second_shape: shape of ``second_statistic``.

    Attributes:
        means: ``[K,D]``.
        covariances: of a shape that depends on the type.
        first_statistic: running mean of ``r x``, ``[K,D]``.
        second_statistic: running mean of what the covariance needs of ``r x x^T``.
        statistics: names of the buffers that `sufficient_stats` gives the new terms of.
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
        """Take over means ``[K,D]``, and for all components the covariance of samples ``[N,D]``; empty statistics."""
        self.means.copy_(means)
        self.initialize_covariances(x)
        for name in self.statistics:
            getattr(self, name).zero_()

    def initialize_covariances(self, x: torch.Tensor) -> None:
        """Give all components the covariance of samples ``[N,D]``."""
        raise NotImplementedError

    def squared_mahalanobis(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Squared Mahalanobis distances ``[N,k]`` of samples ``[N,D]``, not negative."""
        raise NotImplementedError

    def reconstruction_error(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Squared distances ``[N,k]`` to each component's subspace, where covariances are of low rank."""
        raise NotImplementedError

    def log_determinants(self, components: torch.Tensor) -> torch.Tensor:
        """Log determinants of the covariances, ``[k]``."""
        raise NotImplementedError

    def largest_variances(self, components: torch.Tensor) -> torch.Tensor:
        """The variance in the direction where it is largest, ``[k]``, or a number above it."""
        raise NotImplementedError

    def sufficient_stats(
        self, resp: torch.Tensor, x: torch.Tensor, components: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Sums over samples of the terms of each statistic: ``resp [N,k]``, ``x [N,D]`` -> ``[k,...]`` by name."""
        raise NotImplementedError

    def update(self, mass: torch.Tensor) -> None:
        """Parameters from statistics; ``mass [K]`` is the running mean responsibility plus eps."""
        raise NotImplementedError

    def log_density(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Log densities ``[N,k]`` in nats of samples ``[N,D]``."""
        constants = add_log_2_pi(self.log_determinants(components), self.n_features)
        return self.squared_mahalanobis(x, components).add_(constants).mul_(-0.5)

    def log_joint(
        self, x: torch.Tensor, log_weights: torch.Tensor, active: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log of weight times density of samples, for the components that can have a responsibility above 0.

        Args:
            x: ``[N,D]``.
            log_weights: of all components, ``[K]``.
            active: indices of those with some weight. Others are added where no bound shows that they are `LOG_RESP_CUTOFF` from
                the best one for every sample.

        Returns:
            ``[N,k]``, and the indices of these components, ``[k]``.
        """
        log_joint = self.log_density(x, active).add_(log_weights[active])
        others = self.candidate_components(x, log_weights, active, log_joint.amax(1))
        if len(others):
            of_others = self.log_density(x, others).add_(log_weights[others])
            log_joint, active = torch.cat([log_joint, of_others], 1), torch.cat([active, others])
        return log_joint, active

    def e_step(
        self, x: torch.Tensor, log_weights: torch.Tensor, active: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Responsibilities, and the sufficient_stats that a step needs of them.

        Args:
            x: samples ``[N,D]``.
            log_weights: of all components, ``[K]``.
            active: see `log_joint`.

        Returns:
            ``log_likelihood`` (nats, of all samples), ``resp_statistic [k]`` and what `sufficient_stats` gives; and the indices of
            these components, ``[k]``.
        """
        log_joint, components = self.log_joint(x, log_weights, active)
        highest = log_joint.amax(1, keepdim=True)
        resp = log_joint.sub_(highest).clamp_(min=-LOG_RESP_CUTOFF).exp_()  # denormal numbers would be slow
        total = resp.sum(1, keepdim=True)
        resp.div_(total)
        sufficient_stats = {
            "log_likelihood": (highest + total.log()).sum(dtype=torch.float64),
            "resp_statistic": resp.sum(0),
            **self.sufficient_stats(resp, x, components),
        }
        return sufficient_stats, components

    def candidate_components(
        self, x: torch.Tensor, log_weights: torch.Tensor, active: torch.Tensor, best: torch.Tensor
    ) -> torch.Tensor:
        """Components ``[k]`` beside the active ones that may come near the ``best [N]`` for some sample of ``x [N,D]``.

        The norms of samples and mean bound their distance from below, the largest variance what it counts for.
        """
        is_idle = torch.ones_like(log_weights, dtype=torch.bool)
        is_idle[active] = False
        idle = torch.nonzero(is_idle).flatten()
        norms = torch.linalg.vector_norm(x, dim=1)
        of_means = torch.linalg.vector_norm(self.means[idle], dim=1)
        distances = torch.maximum(norms.amin() - of_means, of_means - norms.amax()).clamp(min=0)
        constants = add_log_2_pi(self.log_determinants(idle), self.n_features)
        log_density = (distances.square() / self.largest_variances(idle) + constants).mul(-0.5)
        return idle[~(log_density + log_weights[idle] < best.amin() - LOG_RESP_CUTOFF)]


def add_log_2_pi(log_determinants: torch.Tensor, n_features: int) -> torch.Tensor:
    """Complete the constant of a Gaussian density: ``log |C|``, with other terms or not -> ``log |C| + D log(2 pi)``."""
    return log_determinants + n_features * math.log(2 * math.pi)


def squared_distances(x: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances: ``x [N,D]``, ``means [K,D]`` -> ``[N,K]``, not negative."""
    norms = x.square().sum(1, keepdim=True)
    return torch.addmm(means.square().sum(1), x, means.T, alpha=-2).add_(norms).clamp_(min=0)


def assigned_samples(resp: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The samples that count for each component: in many dimensions nearly every one belongs to a single component.

    Args:
        resp: responsibilities ``[N,K]``.

    Returns:
        For each component the indices ``[n]`` of its samples and their responsibilities ``[n,1]``.
    """
    of_components = resp.T.contiguous()
    own = of_components > RESP_CUTOFF
    rows = torch.nonzero(own)[:, 1].split(own.sum(1).tolist())
    return [(rows[k], of_components[k, rows[k]].unsqueeze(1)) for k in range(len(rows))]
