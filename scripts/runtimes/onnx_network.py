"""The exported network in onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.utils import optional_import

from ..errors import InputError, reason_of

onnxruntime, has_onnxruntime = optional_import("onnxruntime")

EXPORT = "python -m monai.bundle onnx_export --args_file configs/onnx_export.json"


class OnnxNetwork:
    """An ONNX file that is called as the network is, by `DPMMInferer` for one.

    Args:
        path: what `onnx_export` wrote.
        providers: what onnxruntime computes with, first choice first.

    Raises:
        InputError: onnxruntime is not installed, no such file, or not an export of this bundle.
    """

    def __init__(self, path: str | os.PathLike, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        if not has_onnxruntime:
            raise InputError(f"To run {path} onnxruntime is needed and not installed; `pip install onnxruntime`.")
        if not Path(path).is_file():
            raise InputError(f"There is no exported network {path}; make it with `{EXPORT}`.")
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=list(providers))
            (image,), (pred,) = self.session.get_inputs(), self.session.get_outputs()
            named = (image.name, len(image.shape), pred.name, len(pred.shape)) == ("image", 4, "pred", 4)
        except Exception as error:
            raise InputError(f"{path} cannot be run ({reason_of(error)}); make it anew with `{EXPORT}`.") from error
        if not named:
            raise InputError(f"{path} is not an export of this bundle: expected image in and pred out; use `{EXPORT}`.")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Calibrated anomaly maps.

        Args:
            images: ``[B,C,H,W]`` in [0,1], C 1 or 3, H and W at least 14.

        Returns:
            ``[B,1,H,W]``, on the CPU.
        """
        (maps,) = self.session.run(["pred"], {"image": images.detach().float().cpu().numpy()})
        return torch.from_numpy(maps)
