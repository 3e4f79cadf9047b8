"""Dirichlet process mixture: weights, components and online EM."""

from .dirichlet_process import COVARIANCE_TYPES, DISTRIBUTIONS, SCORE_KINDS, DirichletProcessMixture

__all__ = ["COVARIANCE_TYPES", "DISTRIBUTIONS", "SCORE_KINDS", "DirichletProcessMixture"]
