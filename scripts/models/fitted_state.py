"""Checks of a loaded fitted state before any of it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from ..data.acquisition import is_fitted_acquisition
from ..digests import CONVERTED_DIGEST, tensor_digest
from ..errors import InputError

ENCODER = "encoder.vit."
CALIBRATION = "calibration."  # NaN there marks a score kind that is not calibrated
# One column per held-out case or region; models of 0.5 and earlier have none, and those of 0.6 other peaks.
REGION_PEAKS = ("calibration.regions.case_local_peaks", "calibration.regions.region_local_peaks")
REGION_PEAKS_OF_0_6 = ("calibration.regions.case_peaks", "calibration.regions.region_peaks")
FIT = "fit it with `python -m monai.bundle run training --config_file configs/train.json --dataset_dir NORMALS`"
REMEDY = f"take another copy, or {FIT}"

# Settings that earlier models do not name: field_of_view_mm up to 0.9, distribution, patch_smoothing and views up to
# 0.8, layer_reduction up to 0.6, scales up to 0.1.
EARLIER_SETTINGS = {
    "layer_reduction": "concat",
    "scales": [1.0],
    "distribution": "gaussian",
    "patch_smoothing": 0.0,
    "views": None,
    "field_of_view_mm": None,
}


def fitted_settings(extra_state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a fit by config id; those that did not exist yet have the value that they stand for."""
    return {**EARLIER_SETTINGS, **extra_state["settings"]}


def check_tensors(
    loaded: Any, state_dict: Mapping[str, Any], what: str, remedy: str = REMEDY, finite: bool = True
) -> None:
    """Check that loaded tensors fit a module.

    Args:
        loaded: content of a file, to replace ``state_dict``.
        state_dict: that of the module; entries other than tensors are skipped.
        what: name of the file or its part, for the message.
        remedy: advice, for the message.
        finite: whether all numbers must be finite; a network's calibration is exempt.

    Raises:
        InputError: names, types or shapes differ, or numbers are not finite.
    """
    if not isinstance(loaded, Mapping):
        raise InputError(f"{what} must hold tensors by name, and holds a {type(loaded).__name__}; {remedy}.")
    names = set(loaded) ^ set(state_dict)
    if names:
        raise InputError(f"{what} is not a model of this network ({len(names)} entries differ); {remedy}.")
    for name, expected in state_dict.items():
        if not isinstance(expected, torch.Tensor):
            continue
        tensor = loaded[name]
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise InputError(f"{what} has no tensor {name}; {remedy}.")
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise InputError(
                f"{what} has {name} of {_kind(tensor)} where this network has {_kind(expected)}; {remedy}."
            )
        if finite and not name.startswith(CALIBRATION) and not bool(tensor.isfinite().all()):
            raise InputError(f"{what} has numbers in {name} that are not finite; {remedy}.")


def encoder_digest(state_dict: Mapping[str, Any]) -> str:
    """Compute the digest of the encoder's weights in a network's state dict, see `tensor_digest`."""
    return tensor_digest({name.removeprefix(ENCODER): state_dict[name] for name in state_dict if _is_weight(name)})


def fitted_tensors(state_dict: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors in a network's state dict but the weights of the encoder."""
    return {
        name: value for name, value in state_dict.items() if isinstance(value, torch.Tensor) and not _is_weight(name)
    }


def fitted_digest(
    state_dict: Mapping[str, Any],
    weights: str,
    settings: Mapping[str, Any],
    claimed: str,
    acquisition: Mapping[str, Any] | None = None,
) -> str:
    """Compute the digest of all fitted state.

    Args:
        state_dict: that of a `PatchAnomalyNetwork`, with or without its ``_extra_state``.
        weights: see `encoder_digest`.
        settings: see `PatchAnomalyNetwork.settings`.
        claimed: recorded digest of the encoder's weights; empty if they are random.
        acquisition: see `PatchAnomalyNetwork.acquisition`.

    Returns:
        SHA-256 in hexadecimal.
    """
    tensors = tensor_digest(fitted_tensors(state_dict))
    content = {"settings": settings, "weights_digest": claimed, "encoder": weights, "tensors": tensors}
    if acquisition is not None:
        content["acquisition"] = acquisition
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_fitted(state_dict: Mapping[str, Any], expected: Mapping[str, Any], what: str = "The fitted model") -> str:
    """Check a network's state dict: entries, finite numbers, calibration and digests.

    Args:
        state_dict: as saved; its ``_extra_state`` has ``settings``, ``weights_digest`` and, after 0.4, ``digest``.
        expected: state dict of the network that will hold it.
        what: name of the file, for messages.

    Returns:
        The digest of its encoder weights; empty if they are recorded as random.

    Raises:
        InputError: the state is of another network, or was modified after it was saved.
    """
    check_tensors(state_dict, _with_columns_of(state_dict, expected), what)
    check_region_peaks(state_dict, what)
    check_calibration(state_dict["calibration.rates"], state_dict["calibration.quantiles"], what)
    return check_digests(state_dict, what)


def check_digests(state_dict: Mapping[str, Any], what: str = "The fitted model") -> str:
    """Check that a network's state dict is unmodified.

    Args:
        state_dict: as saved, see `check_fitted`.
        what: name of the file, for messages.

    Returns:
        The digest of its encoder weights; empty if they are recorded as random.

    Raises:
        InputError: a digest differs.
    """
    extra = state_dict["_extra_state"]
    claimed, weights = extra["weights_digest"], encoder_digest(state_dict)
    if claimed not in ("", weights) and ("digest" in extra or claimed == CONVERTED_DIGEST):
        raise InputError(f"{what} has other encoder weights than those that it was fitted with; {REMEDY}.")
    digest = fitted_digest(state_dict, weights, extra["settings"], claimed, extra.get("acquisition"))
    if "digest" in extra and extra["digest"] != digest:
        raise InputError(f"{what} was damaged or changed since it was saved: its digest differs; {REMEDY}.")
    return weights if claimed else ""


def check_calibration(rates: torch.Tensor, quantiles: torch.Tensor, what: str, remedy: str = REMEDY) -> None:
    """Check decision thresholds.

    Args:
        rates: false-positive rates ``[L]``, falling.
        quantiles: raw scores ``[kinds, L]``, rising; NaN for score kinds that are not calibrated.
        what: name of the file, for the message.
        remedy: advice, for the message.

    Raises:
        InputError: values are not finite, or rates do not fall, or quantiles do not rise.
    """
    calibrated = quantiles[~quantiles.isnan().all(1)]
    is_empty = bool(rates.isnan().all()) and not len(calibrated)
    falls = bool(((rates > 0) & (rates < 1)).all()) and bool((rates.diff() <= 0).all())
    rises = bool(calibrated.isfinite().all()) and bool((calibrated.diff() >= 0).all())
    if not (is_empty or (falls and rises)):
        raise InputError(f"{what} has impossible decision thresholds: its calibration is damaged; {remedy}.")


def check_region_peaks(state_dict: Mapping[str, Any], what: str, remedy: str = REMEDY) -> None:
    """Check the peaks of held-out normal cases.

    Args:
        state_dict: that of a `PatchAnomalyNetwork`; without peaks if it was fitted with 0.6 or earlier.
        what: name of the file, for the message.
        remedy: advice, for the message.

    Raises:
        InputError: peaks are infinite or do not fall.
    """
    for name in REGION_PEAKS:
        for row in state_dict.get(name, ()):
            peaks = row[~row.isnan()]
            if (
                not bool(peaks.isfinite().all())
                or bool((peaks.diff() > 0).any())
                or bool(row[: len(peaks)].isnan().any())
            ):
                raise InputError(f"{what} has impossible detection limits: its calibration is damaged; {remedy}.")


def _with_columns_of(state_dict: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Give the expected peaks of regions the number of columns that a state dict has."""
    if not isinstance(state_dict, Mapping):
        return dict(expected)
    adapted = {**expected, **{name: state_dict[name] for name in REGION_PEAKS_OF_0_6 if name in state_dict}}
    for name in REGION_PEAKS:
        saved = state_dict.get(name)
        if saved is None:
            adapted.pop(name, None)
        elif name in adapted and isinstance(saved, torch.Tensor) and saved.ndim == 2:
            adapted[name] = adapted[name].new_empty(len(adapted[name]), saved.shape[1])
    return adapted


def is_extra_state(value: Any) -> bool:
    """Return whether a value is a network's extra state: settings, digests and acquisition."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("settings"), dict)
        and all(isinstance(name, str) and is_plain(setting) for name, setting in value["settings"].items())
        and is_length(value["settings"].get("field_of_view_mm"))
        and isinstance(value.get("weights_digest"), str)
        and isinstance(value.get("digest", ""), str)
        and isinstance(value.get("encoder_licence", ""), str)
        and ("acquisition" not in value or is_fitted_acquisition(value["acquisition"]))
    )


def is_plain(value: Any) -> bool:
    """Return whether a value is a number, a string, None, or a list of these."""
    return value is None or isinstance(value, int | float | str) or (type(value) is list and all(map(is_plain, value)))


def is_length(value: Any) -> bool:
    """Return whether a value is a positive number, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (is_number and 0 < value < float("inf"))


def _is_weight(name: str) -> bool:
    return name.startswith(ENCODER)


def _kind(tensor: torch.Tensor) -> str:
    return f"shape {list(tensor.shape)} and type {str(tensor.dtype).removeprefix('torch.')}"
