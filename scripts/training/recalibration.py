"""Recalibration of a fitted model to the decision thresholds of a site, without a new fit."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist

from ..errors import InputError, reason
from ..models.checkpoint import save_network
from ..models.provenance import NOTE, provenance
from .calibrator import ThresholdCalibrator
from .embeddings import EmbeddingDataset
from .output import CALIBRATION_REPORT, FitOutput

logger = logging.getLogger(__name__)

MIN_PATCHES_BEYOND = 10  # beyond a decision threshold, which would otherwise depend on a patch or two


def recalibrate(
    calibrator: ThresholdCalibrator,
    embeddings: EmbeddingDataset,
    path: str | os.PathLike,
    output: FitOutput,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Calibrate a fitted network on normals of a site, and write it.

    ``calibration_report.json``, which names no case, keeps the thresholds from before; it is written first.

    Args:
        calibrator: calibrator of the fitted network, with the embeddings.
        embeddings: embeddings of the site's normals.
        path: file of the calibrated network, see `save_network`.
        output: directory of the report.
        settings: settings of the run, for the report.

    Returns:
        The report.

    Raises:
        InputError: too few patches for the target false-positive rate, or a file cannot be written.
    """
    network = calibrator.network
    calibration, kind, target = network.calibration, network.score_index, network.target_fpr
    scores = calibrator.scores()
    patches = scores.patches[network.score]
    n_required, n_patches = round(MIN_PATCHES_BEYOND / target), len(patches)
    if n_patches < n_required:
        raise InputError(
            f"Calibration to target_fpr {target:g} needs at least {n_required} patches of normal images; got "
            f"{n_patches}, so give more images or a higher target_fpr."
        )
    before = calibration.table(kind)
    beyond = float((patches > float(calibration.decision_threshold(kind, target))).mean())
    calibrator.calibrate(scores)
    report = {
        "note": NOTE,
        "data": embeddings.counts(),
        "score": network.score,
        "target_fpr": target,
        "share_beyond_old_limit": beyond,
        "old_limits": before,
        "new_limits": calibration.table(kind),
        "detection": calibrator.report,
        **provenance(network, settings),
    }
    if idist.get_rank() == 0:
        with output.write(CALIBRATION_REPORT) as partial:
            partial.write_text(json.dumps(report, indent=4) + "\n")
        try:
            save_network(network, path)
        except (OSError, RuntimeError) as error:  # torch raises the latter on a full disk
            raise InputError(
                f"The calibrated model cannot be written to {path} ({reason(error)}), where what was there is "
                "unchanged; make room or give another calibrated_path, and run again."
            ) from error
        logger.info(
            f"{beyond:.1%} of the site's normal patches exceeded the old decision threshold, {target:.1%} were "
            f"expected; calibrated: {path}"
        )
    return report
