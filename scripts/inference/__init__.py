"""Inference: slices to maps, maps to masks, measurements, pictures and a summary."""

from .detection import DetectRegionsd
from .evaluator import CaseEvaluator
from .inferer import DPMMInferer
from .loader import AnomalyMapLoader
from .measurements import MeasureAnomalyd
from .progress import CaseProgressBar
from .remaining import RemainingCases
from .results_directory import ResultsDirectory
from .writer import PredictionWriter

__all__ = [
    "AnomalyMapLoader",
    "CaseEvaluator",
    "CaseProgressBar",
    "DPMMInferer",
    "DetectRegionsd",
    "MeasureAnomalyd",
    "PredictionWriter",
    "RemainingCases",
    "ResultsDirectory",
]
