"""Metrics of anomaly maps against labels."""

from .handler import MapEvaluation

__all__ = ["MapEvaluation"]
