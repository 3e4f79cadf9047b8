"""Dirichlet process mixture: weights, components and online EM."""

from .dirichlet_process import COVARIANCE_TYPES, SCORE_KINDS, DirichletProcessMixture

__all__ = ["COVARIANCE_TYPES", "SCORE_KINDS", "DirichletProcessMixture"]
