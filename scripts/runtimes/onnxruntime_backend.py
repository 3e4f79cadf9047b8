"""The onnxruntime and TensorRT backends of the encoder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import

from ..models.encoder import EncoderBackend

onnxruntime, has_onnxruntime = optional_import("onnxruntime")
if has_onnxruntime:
    onnxruntime.disable_telemetry_events()

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


class OnnxRuntimeBackend(EncoderBackend):
    """Run ONNX blocks written by `export_blocks` or `quantize`.

    Args:
        path: the file.
        providers: execution providers, see `providers_for`.
        name: runtime and precision.
    """

    def __init__(self, path: Path, providers: list[Any], name: str) -> None:
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)

    def __call__(self, images: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """Compute patch tokens, see `EncoderBackend`."""
        tokens = self.session.run(None, {"images": images.cpu().numpy(), "positions": positions.cpu().numpy()})
        return [torch.from_numpy(layer_tokens) for layer_tokens in tokens]


def has_provider(name: str) -> bool:
    """Return whether the installed onnxruntime has an execution provider."""
    return has_onnxruntime and name in onnxruntime.get_available_providers()


def providers_for(runtime: str, precision: str, device: torch.device, cache_dir: str | os.PathLike) -> list[Any]:
    """Return execution providers of onnxruntime, first choice first.

    Args:
        runtime: ``"tensorrt"`` or ``"onnxruntime"``.
        precision: precision of TensorRT.
        device: device of the network.
        cache_dir: folder for the engines that TensorRT builds.

    Returns:
        The argument ``providers`` of `onnxruntime.InferenceSession`.
    """
    index = device.index or 0
    providers: list[Any] = [(CUDA, {"device_id": index})] if device.type == "cuda" and has_provider(CUDA) else []
    if runtime == "tensorrt":
        settings = {
            "device_id": index,
            "trt_fp16_enable": precision == "fp16",
            "trt_bf16_enable": precision == "bf16",
            "trt_int8_enable": precision == "int8",
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(cache_dir),
        }
        providers.insert(0, (TENSORRT, settings))
    return [*providers, CPU]
