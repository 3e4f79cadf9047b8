"""Training: embeddings, batches, engines, handlers and their output."""

from .checkpoint import FitCheckpoint
from .embedding_cache import EmbeddingCache
from .embeddings import EmbeddingDataset, raise_failed_cases
from .handlers import BestModelTracker, CheckpointSaver, MixtureInitializer, ThresholdCalibrator
from .output import FitOutput
from .recalibration import recalibrate
from .report import FitProgressBar, FitReporter
from .sampler import DistributedBatchSampler
from .trainer import LikelihoodEvaluator, OnlineEMTrainer

__all__ = [
    "BestModelTracker",
    "CheckpointSaver",
    "DistributedBatchSampler",
    "EmbeddingCache",
    "EmbeddingDataset",
    "FitCheckpoint",
    "FitOutput",
    "FitProgressBar",
    "FitReporter",
    "LikelihoodEvaluator",
    "MixtureInitializer",
    "OnlineEMTrainer",
    "ThresholdCalibrator",
    "raise_failed_cases",
    "recalibrate",
]
