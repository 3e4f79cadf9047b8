"""What a run's results came from."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from .network import PatchAnomalyNetwork

NOTE = "Not a medical device: for research, not for diagnosis."


def provenance(network: PatchAnomalyNetwork, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in every report: settings, weights and versions.

    Args:
        network: gives its own settings and the digest of its weights.
        settings: those of the run.

    Returns:
        What JSON can hold.
    """
    is_known = hasattr(network, "settings")  # an exported file does not describe itself
    return {
        "settings": {**settings, **(network.settings() if is_known else {})},
        "encoder_weights_digest": network.encoder.weights_digest if is_known else None,
        "encoder_runs_in": network.encoder.backend_name if is_known else None,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Look up the versions of the libraries that results depend on."""
    return {name: version(name) for name in ("monai", "torch", "timm", "numpy", "nibabel")}
