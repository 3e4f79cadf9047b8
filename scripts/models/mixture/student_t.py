"""Student's t distribution: Gaussian components whose scale varies from scan to scan.

A component's covariance is known as well as its scans agree on it. With a gamma distribution of the precision around
the fitted one, ``x | u ~ N(m, C / u)``, ``u ~ Gamma(nu / 2, nu / 2)``, a sample has a multivariate Student's t
distribution with nu degrees of freedom (Peel & McLachlan, 2000, "Robust mixture modelling using the t distribution",
eq. 2, 3). Close to a component it is about the Gaussian; far from it the density falls with the logarithm of the
distance.
"""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

RANGE = (1.0, 1000.0)  # degrees of freedom; the Gaussian is their limit


def log_normalizer(degrees_of_freedom: float, n_features: int) -> float:
    """Compute the log of the density's factor that does not depend on the covariance.

    Args:
        degrees_of_freedom: nu.
        n_features: D.

    Returns:
        ``log Gamma((nu + D) / 2) - log Gamma(nu / 2) - D / 2 log(nu pi)``.
    """
    gain = math.lgamma((degrees_of_freedom + n_features) / 2) - math.lgamma(degrees_of_freedom / 2)
    return gain - n_features / 2 * math.log(degrees_of_freedom * math.pi)


def fit_degrees_of_freedom(squared_distances: np.ndarray, offsets: np.ndarray, n_features: int) -> float:
    """Find the degrees of freedom with the highest likelihood, in `RANGE`.

    Args:
        squared_distances: squared Mahalanobis distances ``[N,k]`` of samples to components.
        offsets: log weight of each component less half its log determinant, ``[k]``.
        n_features: D.

    Returns:
        nu, to a hundredth of its logarithm.
    """

    def negative_log_likelihood(log_degrees: float) -> float:
        degrees = math.exp(log_degrees)
        tails = (degrees + n_features) / 2 * np.log1p(squared_distances / degrees)
        return -log_normalizer(degrees, n_features) - float(logsumexp(offsets - tails, axis=1).mean())

    bounds = tuple(map(math.log, RANGE))
    return math.exp(minimize_scalar(negative_log_likelihood, bounds=bounds, options={"xatol": 0.01}).x)
