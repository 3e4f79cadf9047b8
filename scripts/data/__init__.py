"""Cases, images and labels: search, reading, preprocessing."""

from .cases import CaseDataset, NormalDataset, find_cases, raise_failed, split_cases
from .field_of_view import RestoreBackgroundd, SetFieldOfViewd, choose_field_of_view
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
    "RestoreBackgroundd",
    "ScaleForegroundPercentilesd",
    "ScaleTissued",
    "SetFieldOfViewd",
    "SmoothMapd",
    "choose_field_of_view",
    "find_cases",
    "raise_failed",
    "split_cases",
]
