"""Gaussians whose features vary together: densities are dear, and computed only where they can matter."""

import math

import torch

from .gaussians import FAR, Gaussians, rows_by_component

N_DIRECTIONS = 32  # of the marginal densities that decide which densities matter
ROUNDING = 4e-6  # relative to the lengths of the factors of a matrix product in single precision


class CorrelatedGaussians(Gaussians):
    """Base of the types with correlations.

    In many dimensions all but a few components are out of the question for a sample. A marginal density shows which:
    the squared Mahalanobis distance in a few directions never exceeds the whole one. One matrix product gives those of
    all components, and what they cannot rule out is computed in full; the fit is the same.

    Attributes:
        centre: a point ``[D]`` from which directions are looked at.
        directions: ``[D,p]``, orthonormal, in which samples vary most.
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

    def start_covariances(self, x: torch.Tensor) -> None:
        """Give all components the covariance of samples ``[N,D]``, and take the directions from it."""
        self.centre.copy_(x.mean(0))
        centred = (x - self.centre).double()
        covariance = centred.T @ centred / max(1, len(x) - 1)
        variances, axes = torch.linalg.eigh(covariance)
        self.directions.copy_(axes[:, -self.directions.shape[1] :])
        self.start_from_axes(variances.clamp(min=0), axes)

    def start_from_axes(self, variances: torch.Tensor, axes: torch.Tensor) -> None:
        """Give all components one covariance: rising ``variances [D]`` along the columns of ``axes [D,D]``."""
        raise NotImplementedError

    def marginal_covariances(self, chosen: torch.Tensor) -> torch.Tensor:
        """Covariances ``[k,p,p]`` in the directions."""
        raise NotImplementedError

    def squared_mahalanobis_of_rows(
        self, x: torch.Tensor, chosen: torch.Tensor, rows: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Squared Mahalanobis distances ``[n]`` of the samples with the indices ``rows``, for each component."""
        raise NotImplementedError

    def log_joint(
        self, x: torch.Tensor, log_weights: torch.Tensor, active: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Gaussians`; minus infinity where a bound shows that it is `FAR` from the best."""
        if self.n_features < 2 * N_DIRECTIONS:  # the bounds would cost as much
            return super().log_joint(x, log_weights, active)
        terms = self.marginal_terms(x)
        log_joint = self._screened(x, terms, log_weights[active], active)
        best = log_joint.amax(0)
        others = self.contenders(x, log_weights, active, best)
        if len(others):
            of_others = self._screened(x, terms, log_weights[others], others, best)
            log_joint, active = torch.cat([log_joint, of_others]), torch.cat([active, others])
        return log_joint.T, active

    def _screened(
        self,
        x: torch.Tensor,
        terms: torch.Tensor,
        log_weights: torch.Tensor,
        chosen: torch.Tensor,
        best: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log of weight times density ``[k,N]`` where a bound does not show that it is `FAR` from the ``best [N]``."""
        bounds = self.marginal_bounds(terms, chosen).add_(log_weights.unsqueeze(1))
        constants = log_weights - 0.5 * (self.log_determinants(chosen) + self.n_features * math.log(2 * math.pi))
        log_joint = torch.full_like(bounds, -math.inf)
        if best is None:
            likely = bounds.argmax(0)
            numbers = torch.arange(len(chosen), device=x.device).unsqueeze(1)
            self._fill(log_joint, numbers == likely, x, constants, chosen)
            best = log_joint.amax(0)
            bounds.scatter_(0, likely.unsqueeze(0), -math.inf)
        wanted = bounds > best - FAR
        if int(wanted.sum()) > wanted.numel() // 4:
            return self.log_density(x, chosen).T.add_(log_weights.unsqueeze(1))
        self._fill(log_joint, wanted, x, constants, chosen)
        return log_joint

    def _fill(
        self,
        log_joint: torch.Tensor,
        wanted: torch.Tensor,
        x: torch.Tensor,
        constants: torch.Tensor,
        chosen: torch.Tensor,
    ) -> None:
        """Compute the ``wanted`` entries of ``log_joint [k,N]``."""
        rows = rows_by_component(wanted)
        for index, distances in enumerate(self.squared_mahalanobis_of_rows(x, chosen, rows)):
            log_joint[index, rows[index]] = constants[index] - 0.5 * distances

    def marginal_terms(self, x: torch.Tensor) -> torch.Tensor:
        """What `marginal_bounds` is linear in: products of the coordinates of samples ``[N,D]`` and these themselves.

        The last row is no less than the length of the others, which is what rounding is relative to.
        """
        p = self.directions.shape[1]
        coordinates = self.directions.T @ (x - self.centre).T
        terms = x.new_empty(p * (p + 1) // 2 + p + 1, len(x))
        begin = 0
        for direction in range(p):
            end = begin + p - direction
            torch.mul(coordinates[direction], coordinates[direction:], out=terms[begin:end])
            begin = end
        terms[begin:-1] = coordinates
        squared_lengths = coordinates.square().sum(0)
        terms[-1] = squared_lengths + squared_lengths.sqrt()
        return terms

    def marginal_bounds(self, terms: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Log densities ``[k,N]`` that those of the samples with these terms do not exceed."""
        p = self.directions.shape[1]
        means = ((self.means[chosen] - self.centre) @ self.directions).double()
        precisions = torch.linalg.inv(self.marginal_covariances(chosen).double())
        of_means = (precisions @ means.unsqueeze(2)).squeeze(2)
        first, second = torch.triu_indices(p, p, device=terms.device)
        products = precisions[:, first, second] * torch.where(first == second, 1.0, 2.0)
        factors = torch.cat([products, -2 * of_means], 1).to(terms)
        rounding = -ROUNDING * torch.linalg.vector_norm(factors, dim=1, keepdim=True)
        constants = (of_means * means).sum(1).to(terms) + self.log_determinants(chosen)
        constants = constants + self.n_features * math.log(2 * math.pi)
        return torch.addmm(constants.unsqueeze(1), torch.cat([factors, rounding], 1), terms).mul_(-0.5)
