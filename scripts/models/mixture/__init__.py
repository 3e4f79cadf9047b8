"""The Dirichlet process mixture and its mathematics."""

from .dirichlet_process import COVARIANCE_TYPES, SCORE_KINDS, DirichletProcessMixture

__all__ = ["COVARIANCE_TYPES", "SCORE_KINDS", "DirichletProcessMixture"]
