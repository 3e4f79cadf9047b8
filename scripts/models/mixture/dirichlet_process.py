"""A Dirichlet process mixture of Gaussians or Student's t distributions, fitted by online EM."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import InputError
from .base import EPS, LOG_RESP_CUTOFF, Gaussians, squared_distances
from .diagonal import DiagonalGaussians, SphericalGaussians
from .full import FullGaussians
from .low_rank import LowRankGaussians
from .stick_breaking import log_stick_weights, update_concentration, update_fractions
from .student_t import fit_degrees_of_freedom, log_normalizer

SCORE_KINDS = ("cosine", "euclidean", "mahalanobis", "negative_log_likelihood", "subspace")
COVARIANCE_TYPES = ("full", "diag", "spherical", "low_rank")
DISTRIBUTIONS = ("gaussian", "student_t")
DEGREES_OF_FREEDOM = 20.0  # before they are fitted
MIN_LOG_WEIGHT = math.log(1e-6)  # components of less weight are left out of every score
ROWS_AT_ONCE = 16384  # bounds the memory of a step: [rows, K] and [rows, D]


class DirichletProcessMixture(nn.Module):
    """Truncated stick-breaking mixture (Blei & Jordan, 2006), fitted by online EM (Cappe & Moulines, 2009).

    The number of components is an upper bound: most of them end without weight. All fitted state, with alpha and the
    sufficient statistics, is in buffers, so that a saved fit continues as if never stopped.

    Args:
        n_components: truncation level K.
        n_features: length D of an embedding.
        covariance_type: ``"diag"``, ``"spherical"``, ``"full"`` or ``"low_rank"``, see `Gaussians` and its subclasses.
        weight_concentration: initial alpha; a larger alpha spreads the weight over more components.
        learn_weight_concentration: whether alpha is fitted.
        reg_covar: added to every variance.
        rank: dimension of each component's subspace if ``covariance_type`` is ``"low_rank"``.
        distribution: ``"gaussian"``, or ``"student_t"``: likelihoods are those of Student's t distributions with the
            means and covariances of the Gaussians, see `student_t`. Online EM is that of the Gaussians.

    Attributes:
        gaussians: means and covariances of the components.
        stick_fractions: v ``[K]``.
        weight_concentration: alpha, a scalar.
        resp_statistic: running mean responsibilities R ``[K]``.
        n_steps: number of online-EM steps, a scalar.
        degrees_of_freedom: nu of Student's t distributions, a scalar.

    Raises:
        InputError: an argument out of its range.
    """

    __jit_unused_properties__ = ("covariances", "is_fitted", "means", "n_active")

    log_resp_cutoff: torch.jit.Final[float] = LOG_RESP_CUTOFF  # TorchScript reads no constants of a module
    min_log_weight: torch.jit.Final[float] = MIN_LOG_WEIGHT

    stick_fractions: torch.Tensor
    weight_concentration: torch.Tensor
    resp_statistic: torch.Tensor
    n_steps: torch.Tensor
    degrees_of_freedom: torch.Tensor
    log_normalizer: torch.Tensor

    def __init__(
        self,
        n_components: int,
        n_features: int,
        covariance_type: str = "diag",
        weight_concentration: float = 2.0,
        learn_weight_concentration: bool = True,
        reg_covar: float = 1e-6,
        rank: int = 16,
        distribution: str = "gaussian",
    ) -> None:
        super().__init__()
        if n_components < 1 or n_features < 1:
            raise InputError(f"n_components and n_features must be at least 1; got {n_components} and {n_features}.")
        if covariance_type not in COVARIANCE_TYPES:
            raise InputError(f"covariance_type must be one of {', '.join(COVARIANCE_TYPES)}; got {covariance_type!r}.")
        if distribution not in DISTRIBUTIONS:
            raise InputError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}; got {distribution!r}.")
        if weight_concentration <= 0 or reg_covar <= 0:
            raise InputError(
                f"weight_concentration and reg_covar must be positive; got {weight_concentration} and {reg_covar}."
            )
        self.n_components = int(n_components)
        self.n_features = int(n_features)
        self.covariance_type = covariance_type
        self.score_kinds = SCORE_KINDS if covariance_type == "low_rank" else SCORE_KINDS[:-1]
        self.initial_concentration = float(weight_concentration)
        self.learn_weight_concentration = bool(learn_weight_concentration)
        self.reg_covar = float(reg_covar)
        self.rank = int(rank)
        self.distribution = distribution
        self.gaussians = self._make_gaussians()
        self.register_buffer("stick_fractions", torch.zeros(self.n_components))
        self.register_buffer("weight_concentration", torch.tensor(self.initial_concentration))
        self.register_buffer("resp_statistic", torch.zeros(self.n_components))
        self.register_buffer("n_steps", torch.tensor(0))
        for name in ("degrees_of_freedom", "log_normalizer"):  # the latter is kept because ONNX has no lgamma
            self.register_buffer(name, torch.tensor(0.0), persistent=distribution == "student_t")
        self.set_degrees_of_freedom(DEGREES_OF_FREEDOM)

    @torch.jit.unused
    def _make_gaussians(self) -> Gaussians:
        shape = (self.n_components, self.n_features, self.reg_covar)
        if self.covariance_type == "full":
            return FullGaussians(*shape)
        if self.covariance_type == "spherical":
            return SphericalGaussians(*shape)
        if self.covariance_type == "low_rank":
            return LowRankGaussians(*shape, self.rank)
        return DiagonalGaussians(*shape)

    @property
    def means(self) -> torch.Tensor:
        """Means ``[K,D]`` of the components."""
        return self.gaussians.means

    @property
    def covariances(self) -> torch.Tensor:
        """``[K,D]`` (diag), ``[K]`` (spherical), ``[K,D,D]`` (full), ``[K]`` off the subspace (low_rank)."""
        return self.gaussians.covariances

    @torch.no_grad()
    def initialize(
        self, embeddings: torch.Tensor, means: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Start a fit: means from samples, one covariance for all, sticks from their prior, no statistics.

        Args:
            embeddings: samples ``[N,D]``, preferably drawn from the whole training set.
            means: ``[K,D]``; by default K different rows of ``embeddings``.
            generator: source of randomness, on the CPU.

        Raises:
            InputError: fewer samples than components and no means, or tensors of other shapes.
        """
        x = self._samples(embeddings)
        if means is None:
            if len(x) < self.n_components:
                raise InputError(
                    f"{self.n_components} components need as many patches to start from; got {len(x)}. "
                    "Reduce n_components or give more normal images."
                )
            means = x[torch.randperm(len(x), generator=generator)[: self.n_components].to(x.device)]
        if means.shape != self.means.shape:
            raise InputError(f"means must be of shape {tuple(self.means.shape)}; got {tuple(means.shape)}.")
        if not bool(x.isfinite().all()):
            raise InputError("The patches to start from are not all finite: look at the images they come from.")
        uniform = torch.rand(self.n_components, generator=generator)
        fractions = 1 - uniform.pow(1 / self.initial_concentration)  # inverse transform sampling of Beta(1, alpha)
        fractions[-1] = 1
        self.gaussians.start(x, means)
        self.stick_fractions.copy_(fractions)
        self.weight_concentration.fill_(self.initial_concentration)
        self.resp_statistic.zero_()
        self.n_steps.zero_()

    def partial_fit(self, embeddings: torch.Tensor, step_size: float) -> float:
        """Make one step of online EM: `e_step`, then `m_step`.

        Args:
            embeddings: samples ``[N,D]``.
            step_size: weight in (0,1] of this batch against all previous ones.

        Returns:
            Mean log-likelihood of the batch under the parameters before the step, nats per patch.

        Raises:
            InputError: samples of another shape, a step size out of range, or covariances not positive definite.
            RuntimeError: the mixture was not initialised, or a sample is not finite.
        """
        return self.m_step(self.e_step(self._samples(embeddings)), step_size)

    @torch.no_grad()
    def e_step(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Sum the sufficient statistics of a step over samples; the sums of several processes may be added.

        Args:
            x: samples ``[N,D]``; N may be 0.

        Returns:
            ``n_samples``, ``log_likelihood`` (nats), ``resp_statistic [K]`` and the entries of
            `Gaussians.sufficient_stats`.

        Raises:
            RuntimeError: the mixture was not initialised.
        """
        if not bool(self.stick_fractions.any()):
            raise RuntimeError("The mixture has no start; call `initialize` before `partial_fit`.")
        totals = {name: torch.zeros_like(getattr(self.gaussians, name)) for name in self.gaussians.statistics}
        totals["resp_statistic"] = torch.zeros_like(self.resp_statistic)
        totals["log_likelihood"] = torch.zeros((), dtype=torch.float64, device=x.device)
        totals["n_samples"] = torch.tensor(float(len(x)), dtype=torch.float64, device=x.device)
        log_weights, active = log_stick_weights(self.stick_fractions), self.active()
        for rows in x.split(ROWS_AT_ONCE) if len(x) else ():
            stats, components = self.gaussians.e_step(rows, log_weights, active)
            totals["log_likelihood"] += stats.pop("log_likelihood")
            for name, value in stats.items():
                totals[name].index_add_(0, components, value)
        return totals

    @torch.no_grad()
    def m_step(self, sufficient_stats: dict[str, torch.Tensor], step_size: float) -> float:
        """Update the running statistics with the sums of a batch, then the parameters.

        Args:
            sufficient_stats: sums over the samples of the batch, see `e_step`.
            step_size: weight in (0,1] of this batch against all previous ones.

        Returns:
            Mean log-likelihood of the batch under the parameters before the step, nats per patch.

        Raises:
            InputError: a step size out of range, or covariances that are not positive definite.
            RuntimeError: a sample was not finite.
        """
        if not 0 < step_size <= 1:
            raise InputError(f"A step size must be above 0 and at most 1; got {step_size}.")
        n_samples = int(sufficient_stats["n_samples"])
        mean_log_likelihood = float(sufficient_stats["log_likelihood"]) / n_samples
        if mean_log_likelihood != mean_log_likelihood or abs(mean_log_likelihood) == float("inf"):
            raise RuntimeError(f"The log-likelihood of this batch is {mean_log_likelihood}: are the embeddings finite?")
        self.resp_statistic.lerp_(sufficient_stats["resp_statistic"] / n_samples, step_size)
        for name in self.gaussians.statistics:
            getattr(self.gaussians, name).lerp_(sufficient_stats[name] / n_samples, step_size)
        self.gaussians.update(self.resp_statistic + EPS)
        self.stick_fractions.copy_(update_fractions(self.resp_statistic, self.weight_concentration, n_samples))
        if self.learn_weight_concentration:
            self.weight_concentration.copy_(
                update_concentration(self.resp_statistic, self.weight_concentration, n_samples)
            )
        self.n_steps += 1
        return mean_log_likelihood

    @torch.no_grad()
    def fit_degrees_of_freedom(self, held_out: torch.Tensor) -> float:
        """Fit the degrees of freedom of Student's t distributions to samples ``[N,D]`` that the fit has not seen.

        Returns:
            nu, between 1 and 1000; see `student_t.fit_degrees_of_freedom`.

        Raises:
            InputError: samples of another shape.
        """
        x, active = self._samples(held_out), self.active()
        distances = torch.cat([self.gaussians.squared_mahalanobis(rows, active) for rows in x.split(ROWS_AT_ONCE)])
        offsets = log_stick_weights(self.stick_fractions)[active] - self.gaussians.log_determinants(active) / 2
        nu = fit_degrees_of_freedom(distances.cpu().double().numpy(), offsets.cpu().double().numpy(), self.n_features)
        self.set_degrees_of_freedom(nu)
        return nu

    def set_degrees_of_freedom(self, nu: float) -> None:
        """Set the degrees of freedom of Student's t distributions."""
        self.degrees_of_freedom.fill_(nu)
        self.log_normalizer.fill_(log_normalizer(nu, self.n_features))

    def log_weights(self) -> torch.Tensor:
        """Return the log of the normalised component weights, ``[K]``."""
        return F.log_softmax(log_stick_weights(self.stick_fractions), dim=0)

    def active(self) -> torch.Tensor:
        """Return the indices of the components whose weight is above 1e-6; others are left out of every score."""
        return torch.nonzero(self.log_weights() > self.min_log_weight).flatten()

    @property
    def n_active(self) -> int:
        """Number of components whose weight is above 1e-6."""
        return len(self.active())

    @property
    def is_fitted(self) -> bool:
        """Whether the mixture made at least one step."""
        return int(self.n_steps) > 0

    def score_samples(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the log-likelihood of samples; higher is more normal.

        Args:
            x: samples ``[N,D]``.

        Returns:
            ``[N]`` in nats.
        """
        return self(x)[1]

    def forward(self, x: torch.Tensor, active: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the most probable component and the log-likelihood of each sample.

        Args:
            x: samples ``[N,D]``.
            active: indices of the active components if known, see `active`.

        Returns:
            Indices of components ``[N]``, and log-likelihoods ``[N]`` in nats.
        """
        if active is None:
            active = self.active()
        log_joint = self.log_density(x, active) + log_stick_weights(self.stick_fractions)[active]
        highest, most_probable = log_joint.max(1)
        rest = (log_joint - highest.unsqueeze(1)).clamp_(min=-self.log_resp_cutoff).exp_()  # denormal numbers are slow
        return active[most_probable], rest.sum(1).log_().add_(highest)

    def log_density(self, x: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
        """Compute log densities ``[N,k]`` of samples ``[N,D]`` under components ``[k]``, in nats."""
        if self.distribution == "gaussian":
            return self.gaussians.log_density(x, components)
        nu = self.degrees_of_freedom
        tails = self.gaussians.squared_mahalanobis(x, components).div_(nu).log1p_().mul_((nu + self.n_features) / -2)
        return tails.add_(self.log_normalizer - self.gaussians.log_determinants(components) / 2)

    def anomaly_score(self, x: torch.Tensor, kind: str, active: torch.Tensor | None = None) -> torch.Tensor:
        """Score how unlike all components each sample is; higher is more anomalous.

        Args:
            x: samples ``[N,D]``.
            kind: ``cosine`` (the paper's: 1 minus the largest cosine similarity to a mean), ``euclidean`` or
                ``mahalanobis`` (the smallest distance to a mean), ``negative_log_likelihood`` (nats), or with low-rank
                covariances ``subspace`` (the smallest distance to a component's subspace).
            active: indices of the active components if known, see `active`.

        Returns:
            ``[N]``.

        Raises:
            ValueError: an unknown kind.
        """
        if active is None:
            active = self.active()
        if kind == "negative_log_likelihood":
            return -self(x, active)[1]
        if kind == "cosine":
            return 1 - (F.normalize(x, dim=1) @ F.normalize(self.gaussians.means[active], dim=1).T).amax(1)
        if kind == "euclidean":
            return squared_distances(x, self.gaussians.means[active]).amin(1).sqrt()
        if kind == "mahalanobis":
            return self.gaussians.squared_mahalanobis(x, active).amin(1).sqrt()
        if kind == "subspace" and self.covariance_type == "low_rank":
            return self.gaussians.reconstruction_error(x, active).amin(1).sqrt()
        raise ValueError(f"There is no anomaly score {kind} for a mixture with covariance_type {self.covariance_type}.")

    def _samples(self, embeddings: torch.Tensor) -> torch.Tensor:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.n_features or not len(embeddings):
            raise InputError(
                f"Embeddings must be of shape [N, {self.n_features}], N at least 1; got {tuple(embeddings.shape)}."
            )
        return embeddings.to(self.means)
