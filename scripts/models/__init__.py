"""Encoder, mixture and calibration, the network they form, and its checkpoint."""

from .checkpoint import load_detection_limits, load_field_of_view, load_network
from .encoder import DINOv2PatchEncoder
from .mixture import DirichletProcessMixture
from .network import PatchAnomalyNetwork
from .timm_encoder import make_encoder
from .weights import load_encoder_weights

__all__ = [
    "DINOv2PatchEncoder",
    "DirichletProcessMixture",
    "PatchAnomalyNetwork",
    "load_detection_limits",
    "load_encoder_weights",
    "load_field_of_view",
    "load_network",
    "make_encoder",
]
