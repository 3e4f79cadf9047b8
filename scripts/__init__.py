"""Anomaly detection by a Dirichlet process mixture of DINOv2 patch embeddings, as a MONAI bundle."""

import os
import sys

# Disable the telemetry of libraries. OpenVINO and NNCF send from their import on unless the sending package is missing;
# onnxruntime (at its import), MLflow and others read these variables.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
