"""The file with everything fitted: `model.pt`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, reason, reason_of
from ..files import atomic_write
from .fitted_state import FIT, is_extra_state
from .network import PatchAnomalyNetwork


def save(content: Any, path: str | os.PathLike) -> None:
    """Write what torch can save; see `atomic_write`."""
    with atomic_write(path) as partial:
        torch.save(content, partial)


def save_network(network: PatchAnomalyNetwork, path: str | os.PathLike) -> None:
    """Write a network's state dict; see `save`."""
    save(network.state_dict(), path)


def check_model_path(path: str | os.PathLike, option: str = "ckpt_path") -> None:
    """Check that a model can be written to a place, and replaces nothing but a model there.

    Args:
        path: the file; its folder is made where it is missing.
        option: name of the setting that gave it, for messages.

    Raises:
        InputError: it is a directory or another kind of file, or cannot be written.
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
    """Check that files can be written into a folder, which is made where it is missing.

    Args:
        folder: the folder.
        what: names the setting and the place, for the message.

    Raises:
        InputError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise InputError(f"{what} cannot be written ({reason(error)}); give another place.") from error


def load_network(network: PatchAnomalyNetwork, path: str | os.PathLike) -> PatchAnomalyNetwork:
    """Load what `save_network` wrote.

    Args:
        network: a network with the settings under which the file was fitted.
        path: the file.

    Returns:
        The same network.

    Raises:
        InputError: no such file, not such a file, one fitted under other settings, changed since, or not calibrated.
    """
    state_dict = read_network(path)
    try:
        network.load_state_dict(state_dict)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not network.calibration.is_fitted(network.score_index):
        raise InputError(f"{path} is not calibrated for the score {network.score!r}; {FIT}.")
    return network


def read_network(path: str | os.PathLike) -> dict[str, Any]:
    """Read what `save_network` wrote, without checking that it is as it was written.

    Args:
        path: the file.

    Returns:
        The state dict: tensors, and ``_extra_state`` with the ``settings`` of the fit and the ``weights_digest``.

    Raises:
        InputError: no such file, or not such a file.
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
