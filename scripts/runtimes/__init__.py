"""What the encoder's blocks run in: torch, OpenVINO, onnxruntime or TensorRT, in several precisions.

`quantization` is not imported here: it is needed once for a model, and what it imports is slow to start.
"""

from .choice import PRECISIONS, RUNTIMES, accelerate

__all__ = ["PRECISIONS", "RUNTIMES", "accelerate"]
