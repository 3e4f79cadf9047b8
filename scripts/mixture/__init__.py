"""The Dirichlet process mixture and its mathematics."""

from .dirichlet_process import SCORE_KINDS, DirichletProcessMixture

__all__ = ["SCORE_KINDS", "DirichletProcessMixture"]
