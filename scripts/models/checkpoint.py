"""The checkpoint `model.pt`, which holds all fitted state."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, reason, reason_of
from ..files import atomic_write
from .calibration import ScoreCalibration
from .detection import DetectionLimits
from .fitted_state import CALIBRATION, FIT, fitted_settings, is_extra_state
from .licences import warn_of_licence
from .mixture import SCORE_KINDS
from .network import PatchAnomalyNetwork
from .sample import warn_of_sample

logger = logging.getLogger(__name__)


def save(content: Any, path: str | os.PathLike) -> None:
    """Save an object with `torch.save`, atomically; see `atomic_write`."""
    with atomic_write(path) as partial:
        torch.save(content, partial)


def save_network(network: PatchAnomalyNetwork, path: str | os.PathLike) -> None:
    """Save a network's state dict; see `save`."""
    save(network.state_dict(), path)


def check_model_path(path: str | os.PathLike, option: str = "ckpt_path") -> None:
    """Check that a path can be written and that no file but a model would be replaced.

    Args:
        path: the file; a missing folder is made.
        option: name of the setting, for messages.

    Raises:
        InputError: the path is a directory, another kind of file, or not writable.
    """
    target = Path(path).absolute()
    if target.is_dir():
        raise InputError(f"{option} must name a file, such as {target / 'model.pt'}; {target} is a directory.")
    check_writable(target.parent, f"{option} {target}")
    if target.exists():
        try:
            read_network(target)
        except InputError as error:
            raise InputError(
                f"{option} {target} is a file that is not a fitted model and is left alone; give another place."
            ) from error


def check_writable(folder: Path, what: str) -> None:
    """Check that a folder is writable; make it if it is missing.

    Args:
        folder: the folder.
        what: setting and path, for the message.

    Raises:
        InputError: the folder is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise InputError(f"{what} cannot be written ({reason(error)}); give another place.") from error


def load_network(network: PatchAnomalyNetwork, path: str | os.PathLike) -> PatchAnomalyNetwork:
    """Load a checkpoint of `save_network`.

    Args:
        network: a network with the settings of the fit.
        path: the file.

    Returns:
        The same network.

    Raises:
        InputError: the file is missing, no checkpoint, fitted under other settings, modified, or not calibrated.
    """
    state_dict = read_network(path)
    try:
        network.load_state_dict(state_dict)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not network.calibration.is_fitted(network.score_index):
        raise InputError(f"{path} is not calibrated for the score {network.score!r}; {FIT}.")
    warn_of_licence(network.encoder.name)
    warn_of_sample(network.mixture)
    return network


def load_detection_limits(path: str | os.PathLike, score: str, target_fpr: float) -> DetectionLimits | None:
    """Load the detection limits of a checkpoint, and nothing else of it.

    Args:
        path: the file, see `save_network`.
        score: kind of anomaly score of the maps.
        target_fpr: share of normal patches that reach the decision threshold of the maps.

    Returns:
        The limits as calibrated scores; None if the file is missing or was written by version 0.6 or earlier.

    Raises:
        InputError: the file is no checkpoint, or not calibrated for the score.
    """
    if not Path(path).is_file():
        logger.warning(f"There is no {path}, whose detection limits are needed; the mask is the map at 1 and above.")
        return None
    calibration = ScoreCalibration()
    calibration.load_state_dict(part_of(read_network(path), CALIBRATION))
    kind = SCORE_KINDS.index(score)
    if not calibration.is_fitted(kind):
        raise InputError(f"{path} is not calibrated for the score {score!r}; {FIT}.")
    limits = calibration.detection_limits(kind, target_fpr)
    if limits is None:
        logger.warning(
            f"{path} was calibrated by version 0.6 or earlier and has no detection limits: the mask is the map at 1 "
            "and above, and no case can be flagged; run `calibrate` on normal images (docs/thresholds.md)."
        )
    return limits


def load_field_of_view(path: str | os.PathLike) -> float | None:
    """Load the field of view of a checkpoint, see `scripts.data.SetFieldOfViewd`, and nothing else of it.

    Args:
        path: the file, see `save_network`.

    Returns:
        The field of view in mm; None if there is none, or no file.

    Raises:
        InputError: the file is no checkpoint.
    """
    if not Path(path).is_file():
        logger.warning(f"There is no {path}, whose field of view is needed; slices are taken as they are.")
        return None
    return fitted_settings(read_network(path)["_extra_state"])["field_of_view_mm"]


def part_of(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the state dict of the part of a network whose entries have a prefix."""
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}


def read_network(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint of `save_network` without checking its digests.

    Args:
        path: the file.

    Returns:
        The state dict: tensors, and ``_extra_state`` with the ``settings`` of the fit and the ``weights_digest``.

    Raises:
        InputError: the file is missing, or no checkpoint.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no fitted model {path}; {FIT}, or give ckpt_path.")
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"The fitted model {path} cannot be read ({reason_of(error)}); {FIT}.") from error
    if not isinstance(state_dict, dict) or not is_extra_state(state_dict.get("_extra_state")):
        raise InputError(f"{path} is not a fitted model: it has no settings of a fit; {FIT}.")
    return state_dict
