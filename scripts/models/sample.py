"""The sample model: how it is recognised, and what is said of it."""

from __future__ import annotations

import logging

from ..digests import tensor_digest
from .mixture import DirichletProcessMixture

SAMPLE_FILE = "t1_heads.pt"
SAMPLE_DIGEST = "00b31784bc54a08594827daa63b526d1169290b3adac8e734dc7c25c8d0a85c8"  # of the means of its components
SAMPLE_WARNING = (
    "This is the sample model: healthy skull-stripped T1 heads of one scanner (models/README.md). It shows what the "
    "bundle does; fit normal images of your own before you rely on a result."
)

logger = logging.getLogger(__name__)


def is_sample(mixture: DirichletProcessMixture) -> bool:
    """Return whether a fitted mixture is that of the sample model, also after another calibration."""
    return tensor_digest({"means": mixture.means}) == SAMPLE_DIGEST


def warn_of_sample(mixture: DirichletProcessMixture) -> None:
    """Log a warning if a fitted mixture is that of the sample model."""
    if is_sample(mixture):
        logger.warning(SAMPLE_WARNING)
