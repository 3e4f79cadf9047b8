"""Exports of the whole network as TorchScript or ONNX, and their loading."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import
from torch import nn

from ..errors import InputError, reason_of
from ..models.calibration import normalize_scores
from ..models.network import PatchAnomalyNetwork

onnxruntime, has_onnxruntime = optional_import("onnxruntime")

EXPORT_TORCHSCRIPT = "`python -m monai.bundle ckpt_export --config_file configs/inference.json`"
EXPORT_ONNX = "`python -m monai.bundle onnx_export --args_file configs/onnx_export.json`"


class ExportableNetwork(nn.Module):
    """A fitted network with resolved choices, for `torch.export` and ONNX.

    Exporters cannot trace data-dependent choices (active components, decision threshold), so they are resolved once,
    here. The maps equal those of the network.

    Args:
        network: the fitted and calibrated network.

    Attributes:
        active: indices ``[k]`` of the active components.
        median: raw score that becomes 0.
        threshold: raw score that becomes 1.

    Raises:
        RuntimeError: the network is not fitted or not calibrated.
    """

    active: torch.Tensor
    median: torch.Tensor
    threshold: torch.Tensor

    def __init__(self, network: PatchAnomalyNetwork) -> None:
        super().__init__()
        self.network = network
        self._resolve()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute calibrated anomaly maps.

        Args:
            images: ``[B,C,H,W]`` in [0,1], C 1 or 3, H and W at least 14; not checked.

        Returns:
            ``[B,1,H,W]``.
        """
        embeddings = self.network.encoder(self.network.to_patches(images))
        scores = self.network.patch_scores(embeddings, self.network.score, self.active)
        scores = normalize_scores(scores, self.median, self.threshold)
        return self.network.to_pixels(scores, images.shape[2], images.shape[3])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint of `save_network`; `onnx_export` loads its ``ckpt_file`` into the module it exports."""
        loaded = self.network.load_state_dict(state_dict, strict, assign)
        self._resolve()
        return loaded

    def _resolve(self) -> None:
        median, threshold = self.network.score_range()
        self.register_buffer("active", self.network.mixture.active(), persistent=False)
        self.register_buffer("median", median, persistent=False)
        self.register_buffer("threshold", threshold, persistent=False)


class OnnxNetwork:
    """An exported ONNX network with the call of `PatchAnomalyNetwork`, for `DPMMInferer`.

    Args:
        path: file written by `onnx_export`.
        providers: execution providers, first choice first.

    Raises:
        InputError: onnxruntime is not installed, or the file is missing or no export of this bundle.
    """

    def __init__(self, path: str | os.PathLike, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        if not has_onnxruntime:
            raise InputError(f"To run {path} onnxruntime is needed and not installed; `pip install onnxruntime`.")
        if not Path(path).is_file():
            raise InputError(f"There is no exported network {path}; make it with {EXPORT_ONNX}.")
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=list(providers))
            (image,), (pred,) = self.session.get_inputs(), self.session.get_outputs()
            is_export = (image.name, len(image.shape), pred.name, len(pred.shape)) == ("image", 4, "pred", 4)
        except Exception as error:
            raise InputError(f"{path} cannot be run ({reason_of(error)}); make it anew with {EXPORT_ONNX}.") from error
        if not is_export:
            raise InputError(
                f"{path} is not an export of this bundle: expected image in and pred out; use {EXPORT_ONNX}."
            )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Compute calibrated anomaly maps.

        Args:
            images: ``[B,C,H,W]`` in [0,1], C 1 or 3, H and W at least 14.

        Returns:
            ``[B,1,H,W]``, on the CPU.
        """
        (maps,) = self.session.run(["pred"], {"image": images.detach().float().cpu().numpy()})
        return torch.from_numpy(maps)


def load_exported(
    path: str | os.PathLike, device: torch.device | str = "cpu"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load a file written by `ckpt_export` or `onnx_export`.

    Args:
        path: a ``.ts`` file (TorchScript), or an ``.onnx`` file.
        device: device of TorchScript; ONNX runs on the CPU.

    Returns:
        A function of images ``[B,C,H,W]`` in [0,1] that returns calibrated anomaly maps ``[B,1,H,W]``.

    Raises:
        InputError: the suffix is unknown, or the file is missing or unreadable.
    """
    suffix = Path(path).suffix
    if suffix == ".onnx":
        return OnnxNetwork(path)
    if suffix != ".ts":
        raise InputError(f"An exported network is a .ts or .onnx file; got {path}, so give ckpt_path.")
    if not Path(path).is_file():
        raise InputError(f"There is no exported network {path}; make it with {EXPORT_TORCHSCRIPT}.")
    try:
        return torch.jit.load(path, map_location=device).eval()
    except Exception as error:  # damaged files raise many kinds of errors
        raise InputError(
            f"{path} is not TorchScript ({reason_of(error)}); make it anew with {EXPORT_TORCHSCRIPT}."
        ) from error
