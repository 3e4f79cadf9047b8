"""From cases to maps, masks and what is left of them in a results directory."""

from .evaluator import CaseEvaluator
from .inferer import DPMMInferer
from .measurements import MeasureAnomalyd
from .remaining import RemainingCases
from .results_directory import ResultsDirectory
from .writer import PredictionWriter

__all__ = ["CaseEvaluator", "DPMMInferer", "MeasureAnomalyd", "PredictionWriter", "RemainingCases", "ResultsDirectory"]
