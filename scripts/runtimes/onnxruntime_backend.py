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
    """Run blocks that `export_blocks` or `quantize` wrote.

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
        """See `EncoderBackend`."""
        tokens = self.session.run(None, {"images": images.cpu().numpy(), "positions": positions.cpu().numpy()})
        return [torch.from_numpy(layer_tokens) for layer_tokens in tokens]


def has_provider(name: str) -> bool:
    """Whether the installed onnxruntime can compute with a provider."""
    return has_onnxruntime and name in onnxruntime.get_available_providers()


def providers_for(runtime: str, precision: str, device: torch.device, cache: str | os.PathLike) -> list[Any]:
    """What onnxruntime computes with, first choice first.

    Args:
        runtime: ``"tensorrt"`` or ``"onnxruntime"``.
        precision: that of TensorRT.
        device: of the network.
        cache: folder in which TensorRT keeps the engines it builds.

    Returns:
        As `onnxruntime.InferenceSession` takes them.
    """
    index = device.index or 0
    on_gpu: list[Any] = [(CUDA, {"device_id": index})] if device.type == "cuda" and has_provider(CUDA) else []
    if runtime == "tensorrt":
        settings = {
            "device_id": index,
            "trt_fp16_enable": precision == "fp16",
            "trt_bf16_enable": precision == "bf16",
            "trt_int8_enable": precision == "int8",
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(cache),
        }
        on_gpu.insert(0, (TENSORRT, settings))
    return [*on_gpu, CPU]
