"""The OpenVINO backend of the encoder, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import

from ..models.encoder import EncoderBackend

openvino, has_openvino = optional_import("openvino")

FIXED_SHAPES = 4  # of images for which blocks of their own are compiled, which is a little faster


class OpenVINOBackend(EncoderBackend):
    """Run blocks that `export_blocks` or `quantize` wrote.

    Slices go through one by one: on a CPU a batch is no faster. The first few shapes get blocks compiled for them, the
    others share some in which the shape is free, so that a folder of pictures of many sizes compiles few.

    Args:
        path: the file.
        precision: ``"fp32"``, ``"bf16"``, or ``"int8"``, in which what is not quantised runs in the fastest precision
            that the processor has.
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
        self.compiled: dict[tuple[int, ...] | None, Any] = {}  # None: of any shape

    def __call__(self, images: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """See `EncoderBackend`."""
        run = self._compiled_for(images[:1], positions)
        of_all = positions.cpu().numpy()
        of_slices = [run([image.numpy(), of_all]) for image in images.cpu().split(1)]
        return [torch.cat([torch.from_numpy(found[layer]) for found in of_slices]) for layer in range(len(run.outputs))]

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
    """Whether OpenVINO multiplies in bf16 on this processor."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
