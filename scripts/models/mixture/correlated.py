"""Gaussians with correlated features, whose costly densities are computed only where they can matter."""

import math
from collections.abc import Sequence

import torch

from .base import LOG_RESP_CUTOFF, RESP_CUTOFF, Gaussians, add_log_2_pi, assigned_samples

N_DIRECTIONS = 32  # dimensions of the marginal densities that bound the full ones
ROUNDING = 4e-6  # of a matrix product in single precision, relative to the lengths of its factors


class CorrelatedGaussians(Gaussians):
    """Base class of the covariance types with correlations.

    In many dimensions only a few components are plausible for a sample. Marginal densities show which ones: the squared
    Mahalanobis distance in a few directions never exceeds the full distance. One matrix product gives the marginal
    densities of all components, and only plausible pairs are computed in full; the fit is the same.

    Attributes:
        centre: origin ``[D]`` of the directions.
        directions: ``[D,p]``, orthonormal, in which the samples vary most.
    """

    centre: torch.Tensor
    directions: torch.Tensor

    def __init__(
        self,
        n_components: int,
        n_features: int,
        reg_covar: float,
        covariance_shape: tuple[int, ...],
        second_shape: tuple[int, ...],
    ) -> None:
        super().__init__(n_components, n_features, reg_covar, covariance_shape, second_shape)
        n_directions = min(N_DIRECTIONS, n_features)
        self.register_buffer("centre", torch.zeros(n_features))
        self.register_buffer("directions", torch.eye(n_features, n_directions))

    def initialize_covariances(self, x: torch.Tensor) -> None:
        """Set the covariance of samples ``[N,D]`` for all components, and take the directions from it."""
        self.centre.copy_(x.mean(0))
        centred = (x - self.centre).double()
        covariance = centred.T @ centred / max(1, len(x) - 1)
        variances, axes = torch.linalg.eigh(covariance)
        self.directions.copy_(axes[:, -self.directions.shape[1] :])
        self.start_from_axes(variances.clamp(min=0), axes)

    def start_from_axes(self, variances: torch.Tensor, axes: torch.Tensor) -> None:
        """Set one covariance for all components: rising ``variances [D]`` along the columns of ``axes [D,D]``."""
        raise NotImplementedError

    def marginal_covariances(self, components: torch.Tensor) -> torch.Tensor:
        """Return the covariances ``[k,p,p]`` in the directions."""
        raise NotImplementedError

    def squared_mahalanobis_of_rows(
        self, x: torch.Tensor, components: torch.Tensor, rows: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return for each component the squared Mahalanobis distances ``[n]`` of the samples with its ``rows``."""
        raise NotImplementedError

    def assigned_stats(
        self, x: torch.Tensor, assigned: list[tuple[torch.Tensor, torch.Tensor]], components: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Sum the sufficient statistics of the samples of each component, see `assigned_samples`."""
        raise NotImplementedError

    def sufficient_stats(
        self, resp: torch.Tensor, x: torch.Tensor, components: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Sum the terms over samples, see `Gaussians`."""
        return self.assigned_stats(x, assigned_samples(resp), components)

    def e_step(
        self, x: torch.Tensor, log_weights: torch.Tensor, active: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Sum as `Gaussians.e_step` does, without pairs that are `LOG_RESP_CUTOFF` below the best component."""
        pairs = self.candidate_pairs(x, log_weights, active) if self.n_features >= 2 * N_DIRECTIONS else None
        if pairs is None:
            return super().e_step(x, log_weights, active)
        components, rows, log_joint = pairs
        highest = x.new_full((len(x),), -math.inf).scatter_reduce(0, rows, log_joint, "amax")
        resp = (log_joint - highest[rows]).exp_()
        total = torch.zeros_like(highest).index_add_(0, rows, resp)
        resp /= total[rows]
        order = components.argsort()
        order = order[resp[order] > RESP_CUTOFF]
        components, counts = components[order].unique_consecutive(return_counts=True)
        sizes = counts.tolist()
        assigned = list(zip(rows[order].split(sizes), resp[order].unsqueeze(1).split(sizes), strict=True))
        stats = {
            "log_likelihood": (highest + total.log()).sum(dtype=torch.float64),
            "resp_statistic": torch.stack([weights.sum() for _, weights in assigned]),
            **self.assigned_stats(x, assigned, components),
        }
        return stats, components

    def candidate_pairs(
        self, x: torch.Tensor, log_weights: torch.Tensor, active: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Return (sample, component) pairs with non-negligible responsibility, or None if dense evaluation is cheaper.

        Args:
            x: samples ``[N,D]``.
            log_weights: log weights of all components, ``[K]``.
            active: see `Gaussians.log_joint`.

        Returns:
            Indices of components and of samples, and the log of weight times density, each ``[pairs]``.
        """
        features = self.quadratic_features(x)
        bounds = self.marginal_bounds(features, active) + log_weights[active].unsqueeze(1)
        likely = bounds.argmax(0)
        first = self._log_joint_of(x, log_weights, active[likely], torch.arange(len(x), device=x.device))
        best = torch.empty_like(x[:, 0]).index_copy_(0, first[1], first[2])
        bounds.scatter_(0, likely.unsqueeze(0), -math.inf)
        candidates = [(active, bounds > best - LOG_RESP_CUTOFF)]
        inactive = self.candidate_components(x, log_weights, active, best)
        if len(inactive):
            bounds = self.marginal_bounds(features, inactive) + log_weights[inactive].unsqueeze(1)
            candidates.append((inactive, bounds > best - LOG_RESP_CUTOFF))
        if sum(int(mask.sum()) for _, mask in candidates) > len(x) * len(active) // 8:
            return None
        pairs = [
            (components[indices[:, 0]], indices[:, 1])
            for components, mask in candidates
            for indices in [torch.nonzero(mask)]
        ]
        components, rows = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        rest = self._log_joint_of(x, log_weights, components, rows)
        return tuple(torch.cat(parts) for parts in zip(first, rest, strict=True))  # type: ignore[return-value]

    def _log_joint_of(
        self, x: torch.Tensor, log_weights: torch.Tensor, components: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the pairs, sorted by component, and their log of weight times density, each ``[pairs]``."""
        components, order = components.sort()
        rows = rows[order]
        distinct, counts = components.unique_consecutive(return_counts=True)
        distances = self.squared_mahalanobis_of_rows(x, distinct, rows.split(counts.tolist()))
        constants = log_weights[distinct] - 0.5 * add_log_2_pi(self.log_determinants(distinct), self.n_features)
        log_joint = constants.repeat_interleave(counts) - 0.5 * torch.cat([x.new_empty(0), *distances])
        return components, rows, log_joint

    def quadratic_features(self, x: torch.Tensor) -> torch.Tensor:
        """Compute products of the coordinates of samples ``[N,D]``, and these: `marginal_bounds` is linear in them.

        Returns ``[features,N]``. The last row bounds the length of the others: the scale of rounding errors.
        """
        p = self.directions.shape[1]
        coordinates = self.directions.T @ (x - self.centre).T
        features = x.new_empty(p * (p + 1) // 2 + p + 1, len(x))
        begin = 0
        for direction in range(p):
            end = begin + p - direction
            torch.mul(coordinates[direction], coordinates[direction:], out=features[begin:end])
            begin = end
        features[begin:-1] = coordinates
        squared_lengths = coordinates.square().sum(0)
        features[-1] = squared_lengths + squared_lengths.sqrt()
        return features

    def marginal_bounds(self, features: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Return upper bounds ``[k,N]`` of the log densities of samples, given their `quadratic_features`."""
        p = self.directions.shape[1]
        means = ((self.means[components] - self.centre) @ self.directions).double()
        precisions = torch.linalg.inv(self.marginal_covariances(components).double())
        linear = (precisions @ means.unsqueeze(2)).squeeze(2)
        first, second = torch.triu_indices(p, p, device=features.device)
        products = precisions[:, first, second] * torch.where(first == second, 1.0, 2.0)
        factors = torch.cat([products, -2 * linear], 1).to(features)
        rounding = -ROUNDING * torch.linalg.vector_norm(factors, dim=1, keepdim=True)
        offsets = (linear * means).sum(1).to(features)
        constants = add_log_2_pi(offsets + self.log_determinants(components), self.n_features)
        return torch.addmm(constants.unsqueeze(1), torch.cat([factors, rounding], 1), features).mul_(-0.5)
