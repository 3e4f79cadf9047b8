"""Cases, images and labels: search, reading, preprocessing."""

from .cases import CaseDataset, NormalDataset, find_cases, raise_failed, split_cases
from .images import LoadImageFiled
from .intensities import ScaleForegroundPercentilesd, ScaleTissued
from .labels import AddGroundTruthd, CaseLabels
from .transforms import CheckImaged, OrientUprightd, SmoothMapd

__all__ = [
    "AddGroundTruthd",
    "CaseDataset",
    "CaseLabels",
    "CheckImaged",
    "LoadImageFiled",
    "NormalDataset",
    "OrientUprightd",
    "ScaleForegroundPercentilesd",
    "ScaleTissued",
    "SmoothMapd",
    "find_cases",
    "raise_failed",
    "split_cases",
]
