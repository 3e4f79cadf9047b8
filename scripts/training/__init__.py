"""The fit: embeddings, batches, engines, handlers and their output."""

from .checkpoint import FitCheckpoint
from .embedding_cache import EmbeddingStore
from .embeddings import EmbeddingDataset, raise_failed_cases
from .handlers import BestMixtureKeeper, MixtureStarter, NetworkSaver, ThresholdCalibrator
from .output import FitOutput
from .recalibration import recalibrate
from .report import FitProgressBar, FitReporter
from .sampler import EpochBatches
from .trainer import LikelihoodEvaluator, OnlineEMTrainer

__all__ = [
    "BestMixtureKeeper",
    "EmbeddingDataset",
    "EmbeddingStore",
    "EpochBatches",
    "FitCheckpoint",
    "FitOutput",
    "FitProgressBar",
    "FitReporter",
    "LikelihoodEvaluator",
    "MixtureStarter",
    "NetworkSaver",
    "OnlineEMTrainer",
    "ThresholdCalibrator",
    "raise_failed_cases",
    "recalibrate",
]
