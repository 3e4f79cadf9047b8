"""Training: embeddings, batches, engines, handlers and their output."""

from .calibrator import CheckpointSaver, ThresholdCalibrator
from .checkpoint import FitCheckpoint
from .cross_fit import CrossFit
from .embedding_cache import EmbeddingCache
from .embeddings import EmbeddingDataset, raise_failed_cases
from .handlers import AcquisitionRecorder, BestModelTracker, MixtureInitializer, MixtureSettler, TailFitter
from .output import FitOutput
from .recalibration import recalibrate
from .report import FitProgressBar, FitReporter
from .sampler import DistributedBatchSampler
from .trainer import LikelihoodEvaluator, OnlineEMTrainer

__all__ = [
    "AcquisitionRecorder",
    "BestModelTracker",
    "CheckpointSaver",
    "CrossFit",
    "DistributedBatchSampler",
    "EmbeddingCache",
    "EmbeddingDataset",
    "FitCheckpoint",
    "FitOutput",
    "FitProgressBar",
    "FitReporter",
    "LikelihoodEvaluator",
    "MixtureInitializer",
    "MixtureSettler",
    "OnlineEMTrainer",
    "TailFitter",
    "ThresholdCalibrator",
    "raise_failed_cases",
    "recalibrate",
]
