"""Fitted state without the encoder and what only a continued fit needs, small enough for version control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import InputError
from .fitted_state import fitted_tensors
from .network import PatchAnomalyNetwork

PARAMETERS = "mixture.gaussians."
OF_ALL = (f"{PARAMETERS}centre", f"{PARAMETERS}directions")  # not of each component
ACTIVE = "active"


def compact_state(network: PatchAnomalyNetwork) -> dict[str, Any]:
    """Return what `restore_state` needs.

    Components without weight and the running statistics of the fit are left out, and means and axes are in half
    precision.

    Args:
        network: a fitted network.

    Returns:
        ``settings`` and ``acquisition`` of the network, ``active``, the indices of its active components ``[k]``, and
        ``tensors``: by name as in the state dict, those of the components ``[k,...]``.
    """
    state, active = network.state_dict(), network.mixture.active()
    statistics = {f"{PARAMETERS}{name}" for name in network.mixture.gaussians.statistics}
    tensors = {}
    for name, tensor in fitted_tensors(state).items():
        if name in statistics:
            continue
        if _is_of_components(name):
            tensor = tensor[active].half() if tensor.ndim > 1 else tensor[active]
        tensors[name] = tensor.clone()
    return {
        "settings": state["_extra_state"]["settings"],
        "acquisition": state["_extra_state"].get("acquisition"),
        ACTIVE: active,
        "tensors": tensors,
    }


def restore_state(network: PatchAnomalyNetwork, compact: Mapping[str, Any]) -> None:
    """Give a network with the weights of its encoder the state that `compact_state` returned.

    Args:
        network: a network of the settings of the fit.
        compact: see `compact_state`.

    Raises:
        InputError: the state is of another network, or was damaged.
    """
    try:
        tensors, active = compact["tensors"], compact[ACTIVE]
        state: dict[str, Any] = dict(network.state_dict())
        for name, tensor in fitted_tensors(state).items():
            if _is_of_components(name):
                state[name] = torch.zeros_like(tensor)
                if name in tensors:
                    state[name][active] = tensors[name].to(tensor)
            else:
                state[name] = tensors[name]
        extra = {"settings": compact["settings"], "weights_digest": network.encoder.weights_digest}
        if compact["acquisition"] is not None:
            extra["acquisition"] = compact["acquisition"]
    except (KeyError, TypeError, IndexError, RuntimeError, AttributeError) as error:
        raise InputError(f"This is no compact fitted state ({error}); take another copy of the file.") from error
    network.load_state_dict({**state, "_extra_state": extra})


def _is_of_components(name: str) -> bool:
    return name.startswith(PARAMETERS) and name not in OF_ALL
