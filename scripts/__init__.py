"""Anomaly detection by a Dirichlet process mixture of DINOv2 patch embeddings, as a MONAI bundle."""

import os
import sys

# No library reports to its makers that it is used: OpenVINO and NNCF do from the moment they are imported, unless the
# package that sends is missing; onnxruntime, MLflow and others heed these variables, the first when it is imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
