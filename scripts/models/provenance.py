"""Provenance of results: settings, weights and versions."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from .licences import licence_of
from .network import PatchAnomalyNetwork

NOTE = "Not a medical device: for research, not for diagnosis."


def provenance(network: PatchAnomalyNetwork, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Describe settings, weights and versions for a report.

    Args:
        network: the network with its settings and the digest of its weights.
        settings: settings of the run.

    Returns:
        A dict that JSON can represent.
    """
    is_known = hasattr(network, "settings")  # an exported file does not describe itself
    return {
        "settings": {**settings, **(network.settings() if is_known else {})},
        "encoder_licence": str(licence_of(network.encoder.name)) if is_known else None,
        "encoder_weights_digest": network.encoder.weights_digest if is_known else None,
        "encoder_runs_in": network.encoder.backend_name if is_known else None,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the libraries that results depend on."""
    return {name: version(name) for name in ("monai", "torch", "timm", "numpy", "nibabel")}
