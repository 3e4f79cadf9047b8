"""What the encoder's blocks run in: torch, OpenVINO, onnxruntime or TensorRT, in several precisions."""

from .choice import PRECISIONS, RUNTIMES, accelerate
from .quantization import quantize, save_limits

__all__ = ["PRECISIONS", "RUNTIMES", "accelerate", "quantize", "save_limits"]
