"""The network out of a file that holds it whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import InputError, reason_of
from .onnx_network import OnnxNetwork


def load_exported(
    path: str | os.PathLike, device: torch.device | str = "cpu"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load what `ckpt_export` or `onnx_export` wrote.

    Args:
        path: a ``.ts`` file (TorchScript), or an ``.onnx`` file.
        device: where TorchScript runs; ONNX runs on the CPU.

    Returns:
        ``[B,C,H,W]`` in [0,1] -> calibrated anomaly maps ``[B,1,H,W]``.

    Raises:
        InputError: another suffix, no such file, or an unreadable one.
    """
    suffix = Path(path).suffix
    if suffix == ".onnx":
        return OnnxNetwork(path)
    if suffix != ".ts":
        raise InputError(f"An exported network is a .ts or .onnx file; got {path}, so give ckpt_path.")
    export = "`python -m monai.bundle ckpt_export --config_file configs/inference.json`"
    if not Path(path).is_file():
        raise InputError(f"There is no exported network {path}; make it with {export}.")
    try:
        return torch.jit.load(path, map_location=device).eval()
    except Exception as error:  # whatever a damaged file makes torch raise
        raise InputError(f"{path} is not TorchScript ({reason_of(error)}); make it anew with {export}.") from error
