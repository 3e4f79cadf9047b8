"""Gaussians that vary in a subspace of their own and little beside it: probabilistic principal component analysers."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ...errors import InputError
from .base import EPS
from .correlated import CorrelatedGaussians


class LowRankGaussians(CorrelatedGaussians):
    """Mixture of probabilistic PCA (Tipping & Bishop, 1999): ``x = W^T z + m + noise``, covariance ``W^T W + s I``.

    It is fitted by EM with the latent coordinates z as missing data. The statistics of each component are the
    responsibility-weighted moments of x and of what is expected of z (Ghahramani & Hinton, 1996), so that the same
    online steps apply, a batch step never lowers the likelihood, and no ``D x D`` matrix is formed. After each step
    the coordinates are turned so that the rows of W are orthogonal: the principal axes.

    Args:
        n_components: K.
        n_features: D.
        reg_covar: added to the variance s.
        rank: dimensions q of the subspaces, below D.

    Attributes:
        covariances: variance s of what lies beside the subspace, ``[K]``.
        loadings: W ``[K,q,D]``, orthogonal rows, longest first.
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
        """Give all components the most probable analyser (Tipping & Bishop, 1999, eq. 7, 8)."""
        remainder = variances[: -self.rank].mean()
        lengths = (variances[-self.rank :] - remainder).clamp(min=0).sqrt()
        self.loadings.copy_((axes[:, -self.rank :] * lengths).T.flip(0))
        self.covariances.copy_(remainder + self.reg_covar)

    def squared_mahalanobis(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """``(|d|^2 - sum_j (w_j d)^2 / (|w_j|^2 + s)) / s`` with ``d = x - m``: Woodbury with orthogonal axes."""
        variances = self.covariances[components].unsqueeze(1)
        shares = (self._squared_lengths(components) + variances).reciprocal()
        return self._distances_beside(x, components, shares).div_(variances.T)

    def reconstruction_error(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """What is left of ``|x - m|^2`` beside the principal axes: squared distances to the affine subspaces."""
        squared_lengths = self._squared_lengths(components)
        shares = torch.where(squared_lengths > 1e-12, squared_lengths.reciprocal(), torch.zeros_like(squared_lengths))
        return self._distances_beside(x, components, shares)

    def log_determinants(self, components: torch.Tensor) -> torch.Tensor:
        """See `Gaussians`."""
        variances = self.covariances[components]
        along = (self._squared_lengths(components) + variances.unsqueeze(1)).log().sum(1)
        return along + variances.log() * (self.n_features - self.rank)

    def largest_variances(self, components: torch.Tensor) -> torch.Tensor:
        """See `Gaussians`."""
        return self._squared_lengths(components).amax(1) + self.covariances[components]

    def squared_mahalanobis_of_rows(
        self, x: torch.Tensor, components: torch.Tensor, rows: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """See `CorrelatedGaussians`."""
        variances = self.covariances[components].unsqueeze(1)
        axes = self.loadings[components] * (self._squared_lengths(components) + variances).rsqrt().unsqueeze(2)
        distances = []
        for index, own in enumerate(rows):
            centred = x.index_select(0, own).sub_(self.means[components[index]])
            beside = torch.linalg.vector_norm(centred, dim=1).square_()
            beside -= torch.linalg.vector_norm(centred @ axes[index].T, dim=1).square_()
            distances.append(beside.clamp_(min=0).div_(variances[index]))
        return distances

    def marginal_covariances(self, components: torch.Tensor) -> torch.Tensor:
        """See `CorrelatedGaussians`."""
        loadings = self.loadings[components] @ self.directions
        covariances = loadings.mT @ loadings
        covariances.diagonal(dim1=1, dim2=2).add_(self.covariances[components].unsqueeze(1))
        return covariances

    def sums_over_rows(
        self, x: torch.Tensor, own: list[tuple[torch.Tensor, torch.Tensor]], components: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Sums of ``r x``, ``r |x|^2``, ``r z x^T`` and ``r E[z z^T], r z``."""
        q = self.rank
        moments = x.new_zeros((len(components), q + 1, self.n_features))
        latent = x.new_zeros((len(components), q + 1, q + 1))
        variances = self.covariances[components].unsqueeze(1)
        posterior = (self._squared_lengths(components) + variances).reciprocal()
        to_latent = self.loadings[components] * posterior.unsqueeze(2)
        means = self.means[components]
        squares = x.new_zeros(len(components))
        for index, (rows, weights) in enumerate(own):
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
        """``m = M / (R + eps)``; W by regression of ``x - m`` on the centred z, s from what is left; principal axes.

        The mean is that of the samples and not the intercept of the regression, towards which EM would only creep: the
        two stages of Tipping & Bishop (1999, appendix C).
        """
        q = self.rank
        of_latent = self.latent_statistic[:, :, q:]
        self.means.copy_(self.first_statistic / mass.unsqueeze(1))
        cross = torch.baddbmm(self.cross_statistic, of_latent, self.means.unsqueeze(1), alpha=-1)
        gram = self.latent_statistic[:, :, :q] - of_latent @ of_latent.mT / mass.view(-1, 1, 1)
        gram.diagonal(dim1=1, dim2=2).add_(EPS)
        inverse = torch.linalg.inv(gram.double())
        squared = (cross @ cross.mT).double()
        along = (inverse * squared).sum((1, 2)).to(mass) / mass
        variances = (self.second_statistic / mass - self.means.square().sum(1) - along) / self.n_features
        self.covariances.copy_(variances.clamp_(min=0) + self.reg_covar)
        axes = torch.linalg.eigh(inverse @ squared @ inverse.mT).eigenvectors  # of W W^T, W = inverse @ cross
        turn = axes.flip(2).mT  # longest first
        largest = turn.gather(2, turn.abs().argmax(2, keepdim=True))
        turn = turn * largest.sign()  # an axis points one way, whatever the eigenvalue solver says
        torch.bmm((turn @ inverse).to(cross), cross, out=self.loadings)
        turn = turn.to(cross)
        self.cross_statistic.copy_(turn @ self.cross_statistic)
        turned = turn @ self.latent_statistic
        self.latent_statistic[:, :, :q] = turned[:, :, :q] @ turn.mT
        self.latent_statistic[:, :, q] = turned[:, :, q]

    def _squared_lengths(self, components: torch.Tensor) -> torch.Tensor:
        """Squared lengths ``[k,q]`` of the loadings."""
        return self.loadings[components].square().sum(2)

    def _distances_beside(self, x: torch.Tensor, components: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """``|d|^2 - sum_j share_j (w_j d)^2`` with ``d = x - m``: ``x [N,D]``, ``shares [k,q]`` -> ``[N,k]``.

        All that is linear in x goes into one matrix product, and only ``(w_j x)^2`` needs the projections, one axis of
        all components at a time: that bounds the memory. Less cancels as seen from the centre.
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
