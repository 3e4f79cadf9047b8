"""Gaussians with low-rank covariances: a mixture of probabilistic principal component analysers."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ...errors import InputError
from .base import EPS
from .correlated import CorrelatedGaussians


class LowRankGaussians(CorrelatedGaussians):
    """Mixture of probabilistic PCA (Tipping & Bishop, 1999): ``x = W^T z + m + noise``, covariance ``W^T W + s I``.

    It is fitted by EM with the latent coordinates z as missing data. The statistics of each component are the
    responsibility-weighted moments of x and of the expected z (Ghahramani & Hinton, 1996). So the same online steps
    apply, a batch step never lowers the likelihood, and no ``D x D`` matrix is formed. After each step the coordinates
    are rotated so that the rows of W are orthogonal: the principal axes.

    Args:
        n_components: K.
        n_features: D.
        reg_covar: added to the variance s.
        rank: dimension q of the subspaces, below D.

    Attributes:
        covariances: variance s orthogonal to the subspace, ``[K]``.
        loadings: W ``[K,q,D]`` with orthogonal rows, longest first.
        cross_statistic: running mean of ``r z x^T``, ``[K,q,D]``.
        latent_statistic: running mean of ``r E[z z^T]`` and, in the last column, ``r z``; ``[K,q,q+1]``.

    Raises:
        InputError: a rank out of range.
    """

    loadings: torch.Tensor
    cross_statistic: torch.Tensor
    latent_statistic: torch.Tensor

    def __init__(self, n_components: int, n_features: int, reg_covar: float, rank: int) -> None:
        if not 1 <= rank < n_features:
            raise InputError(f"rank must be at least 1 and below the {n_features} features; got {rank}.")
        super().__init__(n_components, n_features, reg_covar, (n_components,), (n_components,))
        self.rank = int(rank)
        self.statistics += ["cross_statistic", "latent_statistic"]
        self.register_buffer("loadings", torch.zeros(n_components, rank, n_features))
        self.register_buffer("cross_statistic", torch.zeros(n_components, rank, n_features))
        self.register_buffer("latent_statistic", torch.zeros(n_components, rank, rank + 1))

    def start_from_axes(self, variances: torch.Tensor, axes: torch.Tensor) -> None:
        """Set the maximum-likelihood analyser for all components (Tipping & Bishop, 1999, eq. 7, 8)."""
        remainder = variances[: -self.rank].mean()
        lengths = (variances[-self.rank :] - remainder).clamp(min=0).sqrt()
        self.loadings.copy_((axes[:, -self.rank :] * lengths).T.flip(0))
        self.covariances.copy_(remainder + self.reg_covar)

    def squared_mahalanobis(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Compute ``(|d|^2 - sum_j (w_j d)^2 / (|w_j|^2 + s)) / s``, ``d = x - m``: Woodbury with orthogonal axes."""
        variances = self.covariances[components].unsqueeze(1)
        shares = (self._squared_lengths(components) + variances).reciprocal()
        return self._residual_distances(x, components, shares).div_(variances.T)

    def reconstruction_error(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Compute ``|x - m|^2`` less its part along the principal axes: squared distances to the affine subspaces."""
        squared_lengths = self._squared_lengths(components)
        shares = torch.where(squared_lengths > 1e-12, squared_lengths.reciprocal(), torch.zeros_like(squared_lengths))
        return self._residual_distances(x, components, shares)

    def log_determinants(self, components: torch.Tensor) -> torch.Tensor:
        """Compute log determinants, see `Gaussians`."""
        variances = self.covariances[components]
        along = (self._squared_lengths(components) + variances.unsqueeze(1)).log().sum(1)
        return along + variances.log() * (self.n_features - self.rank)

    def largest_variances(self, components: torch.Tensor) -> torch.Tensor:
        """Bound the variances, see `Gaussians`."""
        return self._squared_lengths(components).amax(1) + self.covariances[components]

    def squared_mahalanobis_of_rows(
        self, x: torch.Tensor, components: torch.Tensor, rows: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Compute squared distances, see `CorrelatedGaussians`."""
        variances = self.covariances[components].unsqueeze(1)
        axes = self.loadings[components] * (self._squared_lengths(components) + variances).rsqrt().unsqueeze(2)
        distances = []
        for index, indices in enumerate(rows):
            centred = x.index_select(0, indices).sub_(self.means[components[index]])
            squared = torch.linalg.vector_norm(centred, dim=1).square_()
            squared -= torch.linalg.vector_norm(centred @ axes[index].T, dim=1).square_()
            distances.append(squared.clamp_(min=0).div_(variances[index]))
        return distances

    def marginal_covariances(self, components: torch.Tensor) -> torch.Tensor:
        """Project the covariances, see `CorrelatedGaussians`."""
        loadings = self.loadings[components] @ self.directions
        covariances = loadings.mT @ loadings
        covariances.diagonal(dim1=1, dim2=2).add_(self.covariances[components].unsqueeze(1))
        return covariances

    def assigned_stats(
        self, x: torch.Tensor, assigned: list[tuple[torch.Tensor, torch.Tensor]], components: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Sum ``r x``, ``r |x|^2``, ``r z x^T`` and ``r E[z z^T], r z``."""
        q = self.rank
        moments = x.new_zeros((len(components), q + 1, self.n_features))
        latent = x.new_zeros((len(components), q + 1, q + 1))
        variances = self.covariances[components].unsqueeze(1)
        posterior = (self._squared_lengths(components) + variances).reciprocal()
        to_latent = self.loadings[components] * posterior.unsqueeze(2)
        means = self.means[components]
        squares = x.new_zeros(len(components))
        for index, (rows, weights) in enumerate(assigned):
            samples = x.index_select(0, rows)
            squares[index] = (samples * weights.sqrt()).square().sum()
            z = F.pad((samples - means[index]) @ to_latent[index].T, (0, 1), value=1.0)
            weighted = (z * weights).T
            torch.mm(weighted, samples, out=moments[index])
            torch.mm(weighted, z, out=latent[index])
        latent[:, :q, :q].diagonal(dim1=1, dim2=2).add_(variances * posterior * latent[:, q, q:])
        return {
            "first_statistic": moments[:, q],
            "second_statistic": squares,
            "cross_statistic": moments[:, :q],
            "latent_statistic": latent[:, :q],
        }

    def update(self, mass: torch.Tensor) -> None:
        """Set ``m = M / (R + eps)``, W by regression of ``x - m`` on the centred z, s from residuals; then rotate W.

        The mean is that of the samples, not the intercept of the regression, to which EM converges slowly: the two
        stages of Tipping & Bishop (1999, appendix C).
        """
        q = self.rank
        latent_sums = self.latent_statistic[:, :, q:]
        self.means.copy_(self.first_statistic / mass.unsqueeze(1))
        cross = torch.baddbmm(self.cross_statistic, latent_sums, self.means.unsqueeze(1), alpha=-1)
        gram = self.latent_statistic[:, :, :q] - latent_sums @ latent_sums.mT / mass.view(-1, 1, 1)
        gram.diagonal(dim1=1, dim2=2).add_(EPS)
        inverse = torch.linalg.inv(gram.double())
        squared = (cross @ cross.mT).double()
        along = (inverse * squared).sum((1, 2)).to(mass) / mass
        variances = (self.second_statistic / mass - self.means.square().sum(1) - along) / self.n_features
        self.covariances.copy_(variances.clamp_(min=0) + self.reg_covar)
        axes = torch.linalg.eigh(inverse @ squared @ inverse.mT).eigenvectors  # of W W^T, W = inverse @ cross
        rotation = axes.flip(2).mT  # longest first
        largest = rotation.gather(2, rotation.abs().argmax(2, keepdim=True))
        rotation = rotation * largest.sign()  # makes the signs of axes independent of the eigenvalue solver
        torch.bmm((rotation @ inverse).to(cross), cross, out=self.loadings)
        rotation = rotation.to(cross)
        self.cross_statistic.copy_(rotation @ self.cross_statistic)
        latent = rotation @ self.latent_statistic
        self.latent_statistic[:, :, :q] = latent[:, :, :q] @ rotation.mT
        self.latent_statistic[:, :, q] = latent[:, :, q]

    def _squared_lengths(self, components: torch.Tensor) -> torch.Tensor:
        """Return the squared lengths ``[k,q]`` of the loadings."""
        return self.loadings[components].square().sum(2)

    def _residual_distances(self, x: torch.Tensor, components: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Compute ``|d|^2 - sum_j share_j (w_j d)^2`` with ``d = x - m``: ``x [N,D]``, ``shares [k,q]`` -> ``[N,k]``.

        All terms linear in x are one matrix product. Only ``(w_j x)^2`` needs projections, one axis of all components
        at a time to bound the memory. Subtracting the centre first reduces cancellation.
        """
        x, means = x - self.centre, self.means[components] - self.centre
        axes = self.loadings[components] * shares.sqrt().unsqueeze(2)
        offsets = (axes @ means.unsqueeze(2)).squeeze(2)
        linear = means - (offsets.unsqueeze(1) @ axes).squeeze(1)
        constant = means.square().sum(1) - offsets.square().sum(1)
        distances = torch.addmm(constant.unsqueeze(1), linear, x.T, alpha=-2).add_(x.square().sum(1))
        for index in range(self.rank):
            along = axes[:, index] @ x.T
            distances.addcmul_(along, along, value=-1)
        return distances.clamp_(min=0).T
