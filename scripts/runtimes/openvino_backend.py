"""The OpenVINO backend of the encoder, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import

from ..models.encoder import EncoderBackend

openvino, has_openvino = optional_import("openvino")

FIXED_SHAPES = 4  # image shapes with blocks compiled for them, which are slightly faster


class OpenVINOBackend(EncoderBackend):
    """Run ONNX blocks written by `export_blocks` or `quantize`.

    Slices run one by one: on a CPU a batch is no faster. The first few shapes get blocks compiled for them; all others
    share blocks with dynamic shapes, so that pictures of many sizes need few compilations.

    Args:
        path: the file.
        precision: ``"fp32"``, ``"bf16"``, or ``"int8"``, whose unquantised operations run in the fastest precision of
            the processor.
    """

    def __init__(self, path: Path, precision: str) -> None:
        super().__init__(f"openvino {precision}")
        self.core = openvino.Core()
        self.model = self.core.read_model(path)
        in_bf16 = precision == "bf16" or (precision == "int8" and has_bf16())
        self.options = {
            "INFERENCE_PRECISION_HINT": "bf16" if in_bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self.compiled: dict[tuple[int, ...] | None, Any] = {}  # None: dynamic shape

    def __call__(self, images: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """Compute patch tokens, see `EncoderBackend`."""
        run = self._compiled_for(images[:1], positions)
        positions_array = positions.cpu().numpy()
        outputs = [run([image.numpy(), positions_array]) for image in images.cpu().split(1)]
        return [torch.cat([torch.from_numpy(output[layer]) for output in outputs]) for layer in range(len(run.outputs))]

    def _compiled_for(self, image: torch.Tensor, positions: torch.Tensor) -> Any:
        shape = tuple(image.shape)
        key = shape if shape in self.compiled or len(self.compiled) < FIXED_SHAPES else None
        if key not in self.compiled:
            model = self.model.clone()
            if key is not None:
                model.reshape({"images": list(shape), "positions": list(positions.shape)})
            self.compiled[key] = self.core.compile_model(model, "CPU", self.options)
        return self.compiled[key]


def has_bf16() -> bool:
    """Return whether OpenVINO supports bf16 on this processor."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
