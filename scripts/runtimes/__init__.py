"""What the encoder's blocks run in: torch, OpenVINO, onnxruntime or TensorRT, in several precisions.

`quantization` is not imported here: it is needed once for a model, and what it imports is slow to start.
"""

from .export import ExportableNetwork, load_exported
from .selection import PRECISIONS, RUNTIMES, select_runtime

__all__ = ["PRECISIONS", "RUNTIMES", "ExportableNetwork", "load_exported", "select_runtime"]
