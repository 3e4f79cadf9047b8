"""Encoder runtimes: torch, OpenVINO, onnxruntime and TensorRT in several precisions, int8, and exports.

`quantization` is not imported here: it is used once per model, and its imports are slow.
"""

from .export import ExportableNetwork, load_exported
from .selection import PRECISIONS, RUNTIMES, select_runtime

__all__ = ["PRECISIONS", "RUNTIMES", "ExportableNetwork", "load_exported", "select_runtime"]
