"""The network as an exporter can follow it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..models.calibration import normalize_scores
from ..models.network import PatchAnomalyNetwork


class ExportableNetwork(nn.Module):
    """A fitted network whose choices are made, for `torch.export` and so for ONNX.

    Exporters cannot trace data-dependent choices (active components, decision threshold), so they are resolved once,
    here. The maps are those of the network.

    Args:
        network: fitted and calibrated.

    Attributes:
        active: indices of the components that count ``[k]``.
        median: the raw score that becomes 0.
        limit: the raw score that becomes 1.

    Raises:
        RuntimeError: the network is not fitted or not calibrated.
    """

    active: torch.Tensor
    median: torch.Tensor
    limit: torch.Tensor

    def __init__(self, network: PatchAnomalyNetwork) -> None:
        super().__init__()
        self.network = network
        self._choose()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Calibrated anomaly maps.

        Args:
            images: ``[B,C,H,W]`` in [0,1], C 1 or 3, H and W at least 14; not checked.

        Returns:
            ``[B,1,H,W]``.
        """
        embeddings = self.network.encoder(self.network.to_patches(images))
        scores = self.network.patch_scores(embeddings, self.network.score, self.active)
        scores = normalize_scores(scores, self.median, self.limit)
        return self.network.to_pixels(scores, images.shape[2], images.shape[3])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `save_network` wrote: `onnx_export` loads its ``ckpt_file`` into whatever it exports."""
        loaded = self.network.load_state_dict(state_dict, strict, assign)
        self._choose()
        return loaded

    def _choose(self) -> None:
        median, limit = self.network.score_range()
        self.register_buffer("active", self.network.mixture.active(), persistent=False)
        self.register_buffer("median", median, persistent=False)
        self.register_buffer("limit", limit, persistent=False)
