"""The file with everything fitted: `model.pt`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .errors import InputError, reason_of
from .network import PatchAnomalyNetwork
from .whole_file import whole_file

FIT = "fit it with `python -m monai.bundle run training --config_file configs/train.json --dataset_dir NORMALS`"


def save(content: Any, path: str | os.PathLike) -> None:
    """Write what torch can save; see `whole_file`."""
    with whole_file(path) as partial:
        torch.save(content, partial)


def save_network(network: PatchAnomalyNetwork, path: str | os.PathLike) -> None:
    """Write a network's state dict; see `save`."""
    save(network.state_dict(), path)


def load_network(network: PatchAnomalyNetwork, path: str | os.PathLike) -> PatchAnomalyNetwork:
    """Load what `save_network` wrote.

    Args:
        network: a network with the settings under which the file was fitted.
        path: the file.

    Returns:
        The same network.

    Raises:
        InputError: no such file, not such a file, one fitted under other settings, or not calibrated.
    """
    state_dict = read_network(path)
    network.set_extra_state(state_dict["_extra_state"])  # first, for it says which setting differs
    own, found = set(network.state_dict()), set(state_dict)
    if own != found:
        raise InputError(f"{path} is not a model of this network ({len(own ^ found)} entries differ); {FIT}.")
    network.load_state_dict(state_dict)
    if not network.calibration.is_fitted(network.score_index):
        raise InputError(f"{path} is not calibrated for the score {network.score!r}; {FIT}.")
    return network


def read_network(path: str | os.PathLike) -> dict[str, Any]:
    """Read what `save_network` wrote.

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
        dict(state_dict["_extra_state"]["settings"])
    except Exception as error:
        raise InputError(f"The fitted model {path} cannot be read ({reason_of(error)}); {FIT}.") from error
    return state_dict
